"""Tasks that are programs, from the tables ``[commands.NAME]`` of ``miniflow.toml``.

A table becomes a TaskSpec as a function would: its ``payload`` says the fields, with the same types and the same refusals.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec

from miniflow.errors import SettingsError
from miniflow.limits import limits
from miniflow.options import retry_policy, seconds
from miniflow.payload import bind_signature
from miniflow.programs import Program, check_script, check_template
from miniflow.registry import OnStall, Registry, TaskSpec, duplicate
from miniflow.rule_options import RULE_OPTIONS, RuleOptions, task_rules
from miniflow.settings import FILE
from miniflow.validation_errors import sentence

TYPES: dict[str, Any] = {
    "str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict, "any": Any,
    "list[str]": list[str], "list[int]": list[int], "list[float]": list[float],
}  # fmt: skip
Code = Annotated[int, msgspec.Meta(ge=0, le=255)]
Bound = int | float


class Field(msgspec.Struct, forbid_unknown_fields=True):
    """A field of a payload. Without a default it must be given; ``ge`` and the like are for numbers and lengths."""

    type: str = "any"
    default: Any = msgspec.UNSET
    ge: Bound | None = None
    gt: Bound | None = None
    le: Bound | None = None
    lt: Bound | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    choices: list[str] | None = None
    optional: bool = False
    """Null is a value too, and the default."""


class Declared(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One table. ``argv`` with ``shell = true`` is one line for the shell."""

    argv: Annotated[list[str], msgspec.Meta(min_length=1)] | str
    shell: bool = False
    cwd: str | None = None
    env: dict[str, str] = {}
    inherit_env: bool = True
    success: Annotated[list[Code], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [0])
    retryable: list[Code] | None = None
    payload: dict[str, Field | str] | None = None
    description: str = ""
    queue: str = "default"
    priority: int = 0
    timeout: float | None = None
    max_retries: int | None = None
    retry: dict[str, Any] | list[float] | None = None
    ttl: float | None = None
    result_ttl: float | None = None
    failure_ttl: float | None = None
    heartbeat: float | None = None
    on_stall: OnStall | None = None
    limits: dict[str, Any] | None = None
    concurrency: Any = None
    concurrency_key: Any = None
    concurrency_per_key: Any = None
    on_conflict: Any = None
    rate: Any = None
    unique: Any = None
    debounce: Any = None


def load_commands(tables: Mapping[str, Any], folder: Path) -> list[TaskSpec]:
    """The tasks of the tables, by name. SettingsError that names table and key."""
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SettingsError(
                f"{FILE}: commands.{name} is no table; write [commands.{name}] and below it argv and the like"
            )
    return [_task(name, table, folder) for name, table in sorted(tables.items())]


def add_commands(registry: Registry, specs: list[TaskSpec]) -> None:
    """Put them beside the tasks that are functions. SettingsError where a name is taken."""
    for spec in specs:
        other = registry.find(spec.name)
        if other is not None and other.program is None:
            raise SettingsError(f"{FILE}: {duplicate(spec, other)}")
        registry.add(spec)


def _task(name: str, table: object, folder: Path) -> TaskSpec:
    where = f"{FILE}: commands.{name}"
    try:
        declared = _declared(table)
        program = _program(declared)
        function = _function(name, declared)
        binding = bind_signature(function, name=name)
        _check_fields(program, declared)
        rules = {rule: value for rule in RULE_OPTIONS if (value := getattr(declared, rule)) is not None}
        return TaskSpec(
            name=name,
            function=function,
            binding=binding,
            rules=task_rules(cast("RuleOptions", rules), "its rules", binding.json_schema),
            queue=declared.queue,
            priority=declared.priority,
            timeout_s=seconds(declared.timeout, "timeout"),
            max_retries=declared.max_retries,
            retry=retry_policy(declared.retry, "retry"),
            ttl_s=seconds(declared.ttl, "ttl"),
            result_ttl_s=seconds(declared.result_ttl, "result_ttl"),
            failure_ttl_s=seconds(declared.failure_ttl, "failure_ttl"),
            heartbeat_s=seconds(declared.heartbeat, "heartbeat"),
            on_stall=declared.on_stall,
            executor="command",
            description=declared.description or f"runs {program.in_words()}",
            source=str(folder / FILE),
            limits=limits(declared.limits, "limits"),
            program=program,
        )
    except (ValueError, TypeError) as exc:
        raise SettingsError(f"{where}: {exc}") from None


def _declared(table: object) -> Declared:
    try:
        return msgspec.convert(table, Declared)
    except msgspec.ValidationError as exc:
        raise ValueError(sentence(exc, Declared, unknown="is no key of a command")) from None


def _program(declared: Declared) -> Program:
    line = declared.argv
    if declared.shell != isinstance(line, str):
        raise ValueError(
            'with shell = true, argv is one line of text, such as "sort {file} | uniq -c"'
            if declared.shell
            else 'argv is a list, such as ["convert", "{source}", "out.png"]; one line of text needs shell = true'
        )
    overlap = set(declared.success) & set(declared.retryable or ())
    if overlap:
        raise ValueError(f"exit code {min(overlap)} cannot be both success and retryable")
    shell = line if isinstance(line, str) else None
    argv = () if isinstance(line, str) else tuple(line)
    if shell is not None:
        check_script(shell)
    for template in argv:
        check_template(template)
    if argv and "{" in argv[0]:
        raise ValueError("the program itself, the first of argv, cannot come from the payload")
    return Program(
        argv=argv,
        shell=shell,
        cwd=declared.cwd,
        env=declared.env,
        inherit_env=declared.inherit_env,
        success=tuple(declared.success),
        retryable=None if declared.retryable is None else tuple(declared.retryable),
    )


def _check_fields(program: Program, declared: Declared) -> None:
    if declared.payload is None:
        return
    for name in sorted(program.fields() - declared.payload.keys()):
        raise ValueError(f"argv names the field {{{name}}}, which payload does not have")


def _function(name: str, declared: Declared) -> Any:
    """What stands for the function of the task: never called, its signature is the payload."""

    def run(**fields: Any) -> Any:
        raise NotImplementedError(f"{name} is a program, and runs as a job only")

    run.__name__ = run.__qualname__ = name
    run.__doc__ = declared.description or None
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    if declared.payload is None:
        names = sorted(_program(declared).fields())
        parameters = [inspect.Parameter(field, keyword_only) for field in names]
        parameters.append(inspect.Parameter("more", inspect.Parameter.VAR_KEYWORD, annotation=Any))
    else:
        parameters = [
            inspect.Parameter(field, keyword_only, annotation=hint, default=default)
            for field, (hint, default) in ((field, _hint(field, kind)) for field, kind in declared.payload.items())
        ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _hint(name: str, kind: Field | str) -> tuple[Any, Any]:
    """The annotation and the default of a field."""
    if not name.isidentifier():
        raise ValueError(f"payload: {name!r} is no name for a field; letters, digits and _ are")
    field = Field(kind) if isinstance(kind, str) else kind
    if field.type not in TYPES:
        raise ValueError(f"payload.{name}: {field.type!r} is no type; there are {', '.join(TYPES)}")
    hint = TYPES[field.type]
    if field.choices is not None:
        hint = Literal[tuple(field.choices)]
    bounds = {
        key: getattr(field, key)
        for key in ("ge", "gt", "le", "lt", "pattern", "min_length", "max_length")
        if getattr(field, key) is not None
    }
    if bounds:
        hint = Annotated[hint, msgspec.Meta(**bounds)]
    default = field.default
    if field.optional:
        hint = hint | None
        default = None if default is msgspec.UNSET else default
    if default is msgspec.UNSET:
        return hint, inspect.Parameter.empty
    try:
        msgspec.convert(default, hint)
    except msgspec.ValidationError as exc:
        raise ValueError(f"payload.{name}: the default {default!r} does not fit: {sentence(exc, hint)}") from None
    return hint, default
