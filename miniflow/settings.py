"""The settings, as data: name, type, default, help.

Each can be given in four places; the first that has it wins: a flag of the command line, an environment variable
``MINIFLOW_<NAME>``, ``miniflow.toml``, the default here. An unusable value is a SettingsError that names the setting and the
place it came from. The README's table is held against this one by a test.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from miniflow.errors import InvalidRequest, SettingsError
from miniflow.timetable import zone
from miniflow.validation_errors import sentence

ENV_PREFIX = "MINIFLOW_"
FILE = "miniflow.toml"
TABLES = ("schedules", "commands")
"""What stands in that file beside the settings."""
SECONDS_MAX = 366 * 86_400
"""The longest duration that a setting can be: beyond a year it is a typo, and infinity cannot be counted in milliseconds."""

_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
SWITCHES = dict.fromkeys(_ON, True) | dict.fromkeys(_OFF, False)
"""What a switch may be called where there is only text to say it with."""


class Setting(NamedTuple):
    name: str
    kind: Any
    default: Any
    help: str


def _at_least(least: float, kind: Any = int) -> Any:
    return Annotated[kind, msgspec.Meta(ge=least)]


_COUNT = _at_least(1)
_SECONDS = Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+)(:[0-9]{1,5})?")

SETTINGS = (
    Setting("db", str, "miniflow.db", "the database file; made if it does not exist"),
    Setting("host", str, "127.0.0.1", "the address to listen on; any but a loopback one needs a token"),
    Setting("port", Annotated[int, msgspec.Meta(ge=0, le=65535)], 8000, "the port to listen on; 0 takes a free one"),
    Setting("tasks", str, "./tasks", "the folder of task files"),
    Setting("workers", _at_least(0), 4, "threads that run jobs; 0 accepts jobs and runs none"),
    Setting(
        "executor",
        Literal["thread", "process"],
        "thread",
        "where plain functions run whose task does not say: in a thread of the server, or in a process of their own",
    ),
    Setting("processes", _COUNT, 4, "jobs that run at once in processes of their own, commands among them"),
    Setting(
        "process_niceness",
        Annotated[int, msgspec.Meta(ge=0, le=19)],
        10,
        "how far such processes stand back behind the server (nice)",
    ),
    Setting("process_max_jobs", _COUNT, 10_000, "jobs that a warm process runs before another takes its place"),
    Setting(
        "process_max_bytes",
        _COUNT,
        536_870_912,
        "size in memory beyond which a warm process is not used for another job",
    ),
    Setting("process_idle", _SECONDS, 300.0, "seconds after which a warm process that has no job ends"),
    Setting("async_slots", _COUNT, 100, "`async def` jobs that run at once"),
    Setting("queues", str, "*", "queues to serve, first one first, separated by commas; `*` is all the others"),
    Setting(
        "priority_ageing",
        _SECONDS,
        60.0,
        "seconds that a ready job waits for each step of priority that it gains, so that none waits for ever; 0: never",
    ),
    Setting("grace", _SECONDS, 30.0, "seconds that running jobs get to end when the server stops"),
    Setting("log_dir", str, "./logs", "the folder of app.log"),
    Setting("log_level", Literal["debug", "info", "warning", "error"], "info", "how much goes to the log"),
    Setting(
        "log_format", Literal["text", "json"], "text", "how the log is written: lines of text, or a JSON object a line"
    ),
    Setting("reload", bool, False, "take up task files that change"),
    Setting("token", str, "", "the bearer token that requests must carry; empty: none is asked for"),
    Setting("insecure", bool, False, "listen on any address without a token"),
    Setting("allowed_hosts", str, "", "further host names that requests may be addressed to, separated by commas"),
    Setting(
        "cors_origins", str, "", "origins whose pages may use the API from a browser, separated by commas; `*`: any"
    ),
    Setting("timeout", _SECONDS, 900.0, "seconds that a job may run, where neither it nor its task says; 0: no limit"),
    Setting(
        "stop_grace",
        _SECONDS,
        3.0,
        "seconds that a job gets to end after a timeout or a cancel, before its process is killed or its thread abandoned",
    ),
    Setting(
        "transaction_limit",
        _SECONDS,
        2.0,
        "seconds that a job may hold `ctx.transaction()`, in which nobody else writes",
    ),
    Setting("max_payload_bytes", _COUNT, 1_048_576, "size of one job's payload"),
    Setting("max_body_bytes", _COUNT, 67_108_864, "size of a request's body (a batch)"),
    Setting("max_batch", _COUNT, 10_000, "jobs in one batch"),
    Setting("max_result_bytes", _COUNT, 10_485_760, "size of one job's result"),
    Setting("max_log_bytes", _COUNT, 20_971_520, "size of one job's log; beyond it the middle is left out"),
    Setting("max_queue", _COUNT, 10_000_000, "jobs that may wait; beyond it submits get 429"),
    Setting("max_queues", _COUNT, 1_000, "names of queues"),
    Setting("max_schedules", _COUNT, 100_000, "schedules in the file"),
    Setting("timezone", str, "UTC", "the time zone of schedules that name none, such as Europe/Berlin"),
    Setting("trust_clock", bool, False, "let schedules fire by a clock that is behind the times in the file"),
    Setting(
        "durability",
        Literal["full", "relaxed"],
        "full",
        "`full` syncs every commit; `relaxed` may lose the last moments in a power cut",
    ),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings with their values. The fields are those of SETTINGS; a test holds the two against each other."""

    db: str = "miniflow.db"
    host: str = "127.0.0.1"
    port: int = 8000
    tasks: str = "./tasks"
    workers: int = 4
    executor: str = "thread"
    processes: int = 4
    process_niceness: int = 10
    process_max_jobs: int = 10_000
    process_max_bytes: int = 536_870_912
    process_idle: float = 300.0
    async_slots: int = 100
    queues: str = "*"
    priority_ageing: float = 60.0
    grace: float = 30.0
    log_dir: str = "./logs"
    log_level: str = "info"
    log_format: str = "text"
    reload: bool = False
    token: str = ""
    insecure: bool = False
    allowed_hosts: str = ""
    cors_origins: str = ""
    timeout: float = 900.0
    stop_grace: float = 3.0
    transaction_limit: float = 2.0
    max_payload_bytes: int = 1_048_576
    max_body_bytes: int = 67_108_864
    max_batch: int = 10_000
    max_result_bytes: int = 10_485_760
    max_log_bytes: int = 20_971_520
    max_queue: int = 10_000_000
    max_queues: int = 1_000
    max_schedules: int = 100_000
    timezone: str = "UTC"
    trust_clock: bool = False
    durability: str = "full"

    @property
    def queue_order(self) -> list[str]:
        return [name.strip() for name in self.queues.split(",") if name.strip()]

    @property
    def origins(self) -> frozenset[str]:
        """``cors_origins`` one by one, as browsers send them: in small letters, with no slash at the end."""
        return frozenset(name.strip().lower() for name in self.cors_origins.split(",") if name.strip())


def load(
    flags: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None, folder: Path | None = None
) -> Settings:
    """The settings from all four places. ``flags`` holds what the command line gave; None in it means not given."""
    values: dict[str, Any] = {}
    file = (folder or Path.cwd()) / FILE
    for name, value in _from_file(file).items():
        values[name] = _take(name, value, f"{file.name}", strict=True)
    for key, text in (os.environ if environ is None else environ).items():
        if key.startswith(ENV_PREFIX) and key[len(ENV_PREFIX) :].lower() in BY_NAME:
            values[key[len(ENV_PREFIX) :].lower()] = _take(key[len(ENV_PREFIX) :].lower(), text, key, strict=False)
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = _take(name, value, f"--{name.replace('_', '-')}", strict=False)
    settings = Settings(**values)
    _check_together(settings)
    return settings


def read_table(name: str, folder: Path | None = None) -> dict[str, Any]:
    """A table of the file that is no setting: what it defines by name."""
    found = _read((folder or Path.cwd()) / FILE).get(name, {})
    if not isinstance(found, dict):
        raise SettingsError(f"{FILE}: {name} is no table; write [{name}.NAME]")
    return found


def _from_file(file: Path) -> dict[str, Any]:
    given = {name: value for name, value in _read(file).items() if name not in TABLES}
    for name in given:
        if name not in BY_NAME:
            raise SettingsError(f"{file.name}: {name} is no setting; there are {', '.join((*BY_NAME, *TABLES))}")
    return given


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise SettingsError(f"{file.name} cannot be read: {exc}") from exc


def _take(name: str, value: Any, origin: str, *, strict: bool) -> Any:
    setting = BY_NAME[name]
    if not strict and isinstance(value, str) and setting.kind is bool:
        value = SWITCHES.get(value.lower(), value)
    try:
        return msgspec.convert(value, setting.kind, strict=strict)
    except msgspec.ValidationError as exc:
        raise SettingsError(
            f"{origin}: {value!r} is no value for {name} ({setting.help}): {sentence(exc, setting.kind)}"
        ) from None


def _check_together(settings: Settings) -> None:
    if not settings.queue_order:
        raise SettingsError("--queues names no queue; give names separated by commas, or * for all")
    if len(set(settings.queue_order)) < len(settings.queue_order):
        raise SettingsError(f"--queues names a queue twice: {settings.queues}")
    _check_origins(settings)
    try:
        zone(settings.timezone)
    except InvalidRequest as exc:
        raise SettingsError(f"--timezone {exc.reason}") from None
    if settings.token and len(settings.token) < 16:
        raise SettingsError(
            "--token is shorter than 16 characters; make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`"
        )


def _check_origins(settings: Settings) -> None:
    for origin in settings.origins - {"*"}:
        if not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"--cors-origins: {origin!r} is no origin; give scheme://host or scheme://host:port with nothing after it, "
                "such as https://app.example, several separated by commas, or * for any"
            )
    if "*" in settings.origins and not settings.token and not settings.insecure:
        raise SettingsError(
            "--cors-origins=* lets the page of any site submit jobs here: name the origins, or set a --token, or say --insecure"
        )
