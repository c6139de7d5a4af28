"""A task's signature is the schema of its payload.

``bind_signature`` reads the signature once, when the task is registered, and builds a msgspec decoder from it. The same decoder
then checks a payload at submit (naming the field that is wrong), turns it into the arguments of the call at run time, and prints
itself as JSON Schema. Nothing is pickled, and nothing is coerced: ``"5"`` is not an ``int``.

Two forms of task. A function whose only parameter is a ``dict`` (or an unannotated one called ``payload``) gets the payload
whole. Any other function names its fields: each parameter is one, and ``**kwargs`` takes the ones that have no name. A parameter
annotated ``JobContext`` is no field in either form; the worker fills it.
"""

from __future__ import annotations

import collections.abc
import copy
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, NoReturn, Union

import msgspec

from miniflow.errors import InvalidRequest
from miniflow.validation_errors import choices, plain, quoted, read_validation_error

NAMES_MAX = 20
"""Names of parameters listed in one message."""
PARTLY_MAX = 100
"""Kept of what a payload is that is known in part."""

_CONTEXT = re.compile(r"(?:[\w.]+\.)?JobContext(?:\s*\|\s*None)?")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NO_EXTRA: Any = object()

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Binding:
    """How JSON becomes the arguments of one function. Made by ``bind_signature``; immutable and safe in any thread."""

    __slots__ = (
        "_convert_extra", "_decode", "_defaults", "_empty_is_enough", "_extra", "_names", "_partly", "_positional_only",
        "_schema", "_signature", "_type", "_whole", "context_parameter", "description", "name",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        description: str,
        signature: inspect.Signature,
        hints: Mapping[str, Any],
        context_parameter: str | None,
        whole: str | None,
        extra: Any = _NO_EXTRA,
    ) -> None:
        self.name = name
        self.description = description
        self.context_parameter = context_parameter
        # Without the context, which is the worker's to fill, and without *args, which JSON has no word for.
        self._signature = signature
        self._whole = whole
        self._extra = extra
        self._schema: dict[str, Any] | None = None
        self._partly: dict[frozenset[str], Callable[[bytes], Any]] = {}  # for check_partly, by what comes later
        fields = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        self._names = tuple(p.name for p in fields)
        self._positional_only = tuple(p.name for p in fields if p.kind is p.POSITIONAL_ONLY)
        self._defaults = {p.name: p.default for p in fields if p.default is not p.empty}
        if whole is None:
            self._type: Any = msgspec.defstruct(
                "Payload",
                [
                    (p.name, hints[p.name]) if p.default is p.empty else (p.name, hints[p.name], _default(p.default))
                    for p in fields
                ],
                kw_only=True,
                forbid_unknown_fields=extra is _NO_EXTRA,
            )
        else:
            self._type = hints[whole]
        self._decode = msgspec.json.Decoder(self._type).decode
        self._convert_extra = None if extra is _NO_EXTRA or extra is Any else dict[str, extra]
        try:
            self._decode(b"{}")
            self._empty_is_enough = True
        except msgspec.ValidationError:
            self._empty_is_enough = False

    def __repr__(self) -> str:
        names = [f"{self._whole} whole"] if self._whole is not None else [*self._names]
        more = [] if self._extra is _NO_EXTRA else ["…"]
        return f"<Binding {self.name}({', '.join(names + more)})>"

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that have a name, in order; the context is not among them."""
        return self._names

    @property
    def whole(self) -> str | None:
        """The one parameter that takes the payload as it is, if there is such."""
        return self._whole

    @property
    def takes_any(self) -> bool:
        """Whether a field of any name is welcome: it takes the payload whole, or has ``**kwargs``."""
        return self._whole is not None or self._extra is not _NO_EXTRA

    def check(self, raw: bytes | str) -> None:
        """Nothing if ``raw`` is a payload that the task can take; else ``InvalidRequest`` with the field and the reason."""
        if self._extra is not _NO_EXTRA:
            self.arguments(raw)
            return
        try:
            self._decode(raw)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self._refuse(error)

    def check_partly(self, given: Mapping[str, Any], later: Collection[str]) -> None:
        """As ``check``, of a payload of which the fields ``later`` are not known yet."""
        if self._whole is not None:
            return
        names = frozenset(later)
        decode = self._partly.get(names)
        if decode is None:
            fields = [
                (one.name, Any if one.name in names else one.type, *((None,) if not one.required else ()))
                for one in msgspec.structs.fields(self._type)
            ]
            kind = msgspec.defstruct("Payload", fields, kw_only=True, forbid_unknown_fields=self._extra is _NO_EXTRA)
            decode = msgspec.json.Decoder(kind).decode
            if len(self._partly) < PARTLY_MAX:
                self._partly[names] = decode
        try:
            decode(msgspec.json.encode(given))
            if self._convert_extra is not None:
                extra = {name: one for name, one in given.items() if name not in self._names and name not in names}
                msgspec.convert(extra, self._convert_extra)
        except (msgspec.ValidationError, RecursionError) as error:
            self._refuse(error)

    def arguments(self, raw: bytes | str) -> Arguments:
        """The payload as ``(args, kwargs)`` of the call, decoded to the annotated types. The context is not among them."""
        if self._empty_is_enough and len(raw) == 2 and raw in ("{}", b"{}"):
            return (), {} if self._whole is None else {self._whole: {}}
        try:
            value = self._decode(raw)
            if self._whole is not None:
                kwargs: dict[str, Any] = {self._whole: value}
            else:
                kwargs = msgspec.structs.asdict(value)
                if self._extra is not _NO_EXTRA:
                    self._add_extra(kwargs, raw)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self._refuse(error)
        if self._positional_only:
            return tuple([kwargs.pop(name) for name in self._positional_only]), kwargs
        return (), kwargs

    def _add_extra(self, kwargs: dict[str, Any], raw: bytes | str) -> None:
        """The fields that no parameter names, for ``**kwargs``. A second pass over the text: dearer than one, and simpler."""
        extra = {key: value for key, value in _decode_object(raw).items() if key not in kwargs}
        if self.context_parameter in extra:
            raise self._unknown(str(self.context_parameter))
        kwargs.update(extra if self._convert_extra is None else msgspec.convert(extra, self._convert_extra))

    # ------------------------------------------------------------------------------------------------ from a Python call

    def split(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """The arguments of a call that leaves the context out, ready for the call with it. ``TypeError`` as a call does."""
        bound = self._signature.bind(*args, **kwargs)
        named = _flat(bound)
        return tuple([named.pop(name) for name in self._positional_only if name in named]), named

    def from_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The payload, as JSON text, of the call ``task(*args, **kwargs)``; ``InvalidRequest`` names what does not fit."""
        try:
            fields = _flat(self._signature.bind(*args, **kwargs))
        except TypeError as error:
            raise self._misfit(str(error), kwargs) from None
        payload = fields
        if self._whole is not None:
            given = fields.get(self._whole)
            if given is not None and not isinstance(given, Mapping):
                raise InvalidRequest("payload", f"expected object, got {type(given).__name__}")
            payload = dict(given or {})
        try:
            raw = msgspec.json.encode(payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequest(_culprit(payload), f"cannot be written as JSON: {error}") from error
        self.check(raw)
        return raw.decode()

    # ------------------------------------------------------------------------------------------------ as a schema

    def json_schema(self) -> dict[str, Any]:
        """The payload as one self-contained JSON Schema (2020-12)."""
        if self._schema is None:
            self._schema = self._make_schema()
        return copy.deepcopy(self._schema)

    def _make_schema(self) -> dict[str, Any]:
        wanted = [self._type] if self._extra in (_NO_EXTRA, Any) else [self._type, self._extra]
        schemas, defs = msgspec.json.schema_components(wanted, schema_hook=_anything, ref_template="#/$defs/{name}")
        body = dict(schemas[0])
        if self._whole is None:
            body = dict(defs.pop(body["$ref"].rpartition("/")[2]))
            for name, default in self._defaults.items():
                # Those made by a factory (see _default) are missing: msgspec does not look into it.
                if isinstance(default, (list, dict, set)) and _has_json_form(default):
                    body["properties"][name]["default"] = msgspec.to_builtins(default, str_keys=True)
            if self._extra is not _NO_EXTRA:
                body["additionalProperties"] = True if len(schemas) == 1 else schemas[1]
        schema: dict[str, Any] = {"title": self.name}
        if self.description:
            schema["description"] = self.description
        schema.update((key, value) for key, value in body.items() if key not in schema)
        if defs:
            schema["$defs"] = defs
        return schema

    # ------------------------------------------------------------------------------------------------ refusals

    def _unknown(self, field: str) -> InvalidRequest:
        field = quoted(field)
        return InvalidRequest(f"payload.{field}", f"is not a parameter of task {self.name}; {self._takes()}")

    def _takes(self) -> str:
        if self._whole is not None:
            return f"it takes one object, {self._whole}"
        more = ["…"] if len(self._names) > NAMES_MAX else []
        return f"it takes {', '.join([*self._names[:NAMES_MAX], *more])}" if self._names else "it takes no parameters"

    def _misfit(self, text: str, kwargs: Mapping[str, Any]) -> InvalidRequest:
        """What ``inspect`` says of a call that does not fit the signature, in the words used for a payload."""
        for (
            name
        ) in kwargs:  # before anything else: a misspelt name is also a missing one, and the spelling is the cause
            if name not in self._names and self._extra is _NO_EXTRA:
                return self._unknown(name)
        found = re.search(r"'(.*)'", text)
        name = found[1] if found else ""
        if text.startswith("missing"):
            return InvalidRequest(f"payload.{name}", "is missing")
        if text.startswith("multiple values"):
            return InvalidRequest(f"payload.{name}", "is given twice, by its place and by its name")
        return InvalidRequest("payload", f"{text}; task {self.name}: {self._takes()}")

    def _refuse(self, error: Exception) -> NoReturn:
        if isinstance(error, RecursionError):
            raise InvalidRequest("payload", "is nested too deeply") from None
        if not isinstance(error, msgspec.ValidationError):
            raise InvalidRequest("payload", f"is not valid JSON: {plain(str(error))}") from None
        path, reason, unknown = read_validation_error(str(error))
        if unknown is not None:
            raise self._unknown(unknown) from None
        raise InvalidRequest(f"payload{path}", reason + choices(self._type, path, reason)) from None


# ---------------------------------------------------------------------------------------------------- reading the signature


def bind_signature(function: Callable[..., Any], *, name: str) -> Binding:
    """The binding of ``function``, which is or will be the task ``name``. ``TypeError`` where JSON cannot fill a parameter."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"task {name!r}: its signature cannot be read ({error}); wrap it in a plain function"
        ) from error
    parameters = list(signature.parameters.values())
    context = _context_parameter(parameters, name)
    parameters = [p for p in parameters if p.name != context and p.kind is not p.VAR_POSITIONAL]
    namespace = _namespace(function)
    hints = {p.name: _hint(p, namespace, name) for p in parameters}
    extra: Any = _NO_EXTRA
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        extra = hints[parameters[-1].name]
    whole: str | None = None
    if len(parameters) == 1 and (only := parameters[0]).kind in _POSITIONAL:
        if only.annotation is only.empty and only.name == "payload":
            whole, hints[only.name] = only.name, dict[str, Any]
        elif (mapping := _mapping(hints[only.name])) is not None:
            whole, hints[only.name] = only.name, mapping
    return Binding(
        name=name,
        description=inspect.getdoc(function) or "" if not isinstance(function, functools.partial) else "",
        signature=signature.replace(parameters=parameters, return_annotation=signature.empty),
        hints=hints,
        context_parameter=context,
        whole=whole,
        extra=extra,
    )


def _context_parameter(parameters: list[inspect.Parameter], task: str) -> str | None:
    found = [p for p in parameters if _is_context(p.annotation)]
    if len(found) > 1:
        raise TypeError(
            f"task {task!r}: {found[0].name!r} and {found[1].name!r} are both annotated JobContext; keep one"
        )
    if found and found[0].kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        raise TypeError(
            f"task {task!r}: the context {found[0].name!r} is passed by name; make it an ordinary parameter"
        )
    return found[0].name if found else None


def _is_context(annotation: Any) -> bool:
    """By name: ``context.py`` need not be imported here, and a string under ``from __future__ import annotations`` counts too."""
    if isinstance(annotation, str):
        return _CONTEXT.fullmatch(annotation.strip().strip("\"'")) is not None
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return any(_is_context(option) for option in typing.get_args(annotation))
    return getattr(annotation, "__name__", "") == "JobContext"


def _namespace(function: Any) -> dict[str, Any]:
    """Where the names in the annotations are looked up: the module that the innermost function was written in."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif hasattr(function, "__globals__"):
            return typing.cast("dict[str, Any]", function.__globals__)
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(type(function).__call__, "__globals__"):
            function = type(function).__call__
        else:
            return {}


def _hint(parameter: inspect.Parameter, namespace: dict[str, Any], task: str) -> Any:
    """The annotation as a type, tried on msgspec, so that what cannot be decoded is said when the task is registered."""
    if parameter.annotation is parameter.empty:
        return Any
    where = f"task {task!r}: parameter {parameter.name!r} is annotated {_spelled(parameter.annotation)}"
    holder: Any = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hint = typing.get_type_hints(holder, namespace, include_extras=True)[parameter.name]
    except Exception as error:  # an annotation is code of its author's: evaluating it may raise anything
        raise TypeError(
            f"{where}, which cannot be resolved ({error}); import or define that name at the top of the module"
        ) from error
    try:
        msgspec.json.Decoder(hint)
        stranger = _stranger(msgspec.inspect.type_info(hint), set())
    except Exception as error:  # msgspec passes on what goes wrong inside a user's class, NameError for one
        raise TypeError(f"{where}, which cannot be read from JSON: {error}") from error
    if stranger is not None:
        raise TypeError(
            f"{where}, and a {stranger.__name__} cannot be read from JSON; use JSON types, a dataclass or a msgspec.Struct, "
            f"or annotate it dict and build the {stranger.__name__} inside the task"
        )
    return hint


def _stranger(info: Any, seen: set[int]) -> type | None:
    """The first class in a type that no JSON value is an instance of. (``object`` or ``Iterable`` are fine: a list is one.)"""
    if isinstance(info, tuple):
        return next((found for item in info if (found := _stranger(item, seen)) is not None), None)
    if not isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)) or id(info) in seen:
        return None
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        return None if any(_is_subclass(kind, info.cls) for kind in (dict, list, str, int, float)) else info.cls
    if isinstance(info, msgspec.inspect.Field):
        return _stranger(info.type, seen)
    return _stranger(tuple(getattr(info, field) for field in info.__struct_fields__), seen)


def _is_subclass(kind: type, other: type) -> bool:
    try:
        return issubclass(kind, other)
    except TypeError:  # a protocol that cannot be checked at run time
        return False


def _mapping(hint: Any) -> Any:
    """``hint`` without its None, if what is left is a dict or a mapping; else None."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        hint = options[0] if len(options) == 1 else None
    bare = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    kind = typing.get_origin(bare) or bare
    return hint if kind in (dict, collections.abc.Mapping, collections.abc.MutableMapping) else None


def _default(value: Any) -> Any:
    """A parameter's default as a field's. A list or dict is copied for each call; what JSON has no form for stays an object."""
    if isinstance(value, (list, dict, set, bytearray)) and value:  # msgspec itself copies an empty one
        return msgspec.field(default_factory=functools.partial(copy.deepcopy, value))
    return value if _has_json_form(value) else msgspec.field(default_factory=lambda: value)


def _has_json_form(value: Any) -> bool:
    try:
        msgspec.to_builtins(value, str_keys=True)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _spelled(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)


# ---------------------------------------------------------------------------------------------------- small helpers

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def _anything(_kind: type) -> dict[str, Any]:
    return {"description": "any JSON value"}  # msgspec takes an empty schema for none, and refuses


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The bound arguments in one dict, those of ``**kwargs`` among the others."""
    fields = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            fields.update(fields.pop(parameter.name, {}))
    return fields


def _culprit(payload: Mapping[Any, Any]) -> str:
    """The path of the first field that cannot be encoded."""
    for name, value in payload.items():
        try:
            msgspec.json.encode({name: value})
        except (TypeError, ValueError, OverflowError, RecursionError):
            return f"payload.{name}"
    return "payload"
