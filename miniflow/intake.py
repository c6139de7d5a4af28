"""From what somebody asks for to a row: defaults filled in, limits checked, the payload held against the task's signature.

The order of precedence of a setting is: the submit, the task, the server. Nothing here touches the database.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from miniflow.clock import Clock, to_ms
from miniflow.errors import InvalidRequest, TooLarge, UnknownTask
from miniflow.ids import uuid7
from miniflow.model import NewJob, Waits
from miniflow.registry import HEARTBEAT_S_MIN, ON_STALL_DEFAULT, OnStall, Registry, TaskSpec, valid_queue_name
from miniflow.retry import DEFAULT_MAX_RETRIES, DELAY_S_MAX, RetryPolicy
from miniflow.rule_options import Debounce, SameJob, Unique, concurrency_key, in_seconds, misnamed, same_job, short_key
from miniflow.states import State
from miniflow.traceparent import TRACEPARENT_CHARS_MAX, parse
from miniflow.validation_errors import in_words

PRIORITIES = {"low": 1, "medium": 6, "high": 10}
EMPTY = msgspec.Raw(b"{}")

Short = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=DELAY_S_MAX)]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Place = Annotated[int, msgspec.Meta(ge=0)]
PARENTS_MAX = 10_000
"""Jobs that one job can wait for."""
TraceParent = Annotated[str, msgspec.Meta(max_length=TRACEPARENT_CHARS_MAX)]
"""As the header; empty: none, also where one would be handed on."""
EDGE_KINDS = {"cancel": "after", "run": "all"}


class Submission(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A job to be run: which task, with what payload, and how. Durations are seconds."""

    task: Short | None = None
    type: Short | None = None
    payload: msgspec.Raw = EMPTY
    queue: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | Literal["low", "medium", "high"] | None = None
    delay: Seconds | None = None
    run_at: dt.datetime | None = None
    ttl: Seconds | None = None
    timeout: Seconds | None = None
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None
    retry: RetryPolicy | Annotated[list[Seconds], msgspec.Meta(min_length=1, max_length=100)] | None = None
    idempotency_key: Key | None = None
    tags: (
        Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=100)]], msgspec.Meta(max_length=50)] | None
    ) = None
    meta: dict[str, Any] | None = None
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    result_ttl: Seconds | None = None
    failure_ttl: Seconds | None = None
    depends_on: Annotated[list[Key | Place], msgspec.Meta(max_length=PARENTS_MAX)] | None = None
    on_dependency_failure: Literal["cancel", "run"] | None = None
    heartbeat: Seconds | None = None
    on_stall: OnStall | None = None
    unique: Unique | bool | None = None
    debounce: Debounce | Seconds | None = None
    concurrency_key: Key | None = None
    traceparent: TraceParent | None = None


class Intake:
    """Makes rows of submissions."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        *,
        max_payload_bytes: int,
        default_timeout_s: float,
        default_max_retries: int = DEFAULT_MAX_RETRIES,
    ) -> None:
        self.registry, self._clock, self._max_payload_bytes = registry, clock, max_payload_bytes
        self._default_timeout_ms = _limit_ms(default_timeout_s)
        self._default_max_retries = default_max_retries

    def job(
        self,
        submission: Submission,
        *,
        request_id: str | None = None,
        job_id: str | None = None,
        where: str = "",
        place: int = 0,
        checked: bool = True,
        own: dict[str, Any] | None = None,
        waits: Waits | None = None,
        durable: bool = False,
    ) -> NewJob:
        """The job that ``submission`` asks for. ``where`` goes before the names of fields in errors ("[3]."); ``place`` is where
        it stands in a batch: it can depend on those before it by theirs.

        Of a caller in Python: with ``checked`` False the payload, which may not be whole yet, is not held against the signature;
        ``own`` goes into the options, and ``waits`` is what the job waits for; ``durable``: it is that of a workflow function.

        Raises UnknownTask, InvalidRequest naming the field, TooLarge.
        """
        s = submission
        spec = self._spec(s, where, durable=durable)
        payload = self._payload(spec, s.payload, where, checked=checked)
        queue = s.queue or spec.queue
        if s.queue is not None and not valid_queue_name(queue):
            raise InvalidRequest(f"{where}queue", "is 1 to 100 letters, digits and _ . : / -")
        asked = PRIORITIES[s.priority] if isinstance(s.priority, str) else s.priority
        priority = _first(asked, spec.priority)
        debounce = self._debounce(s, spec, where)
        state, run_at, relative = self._when(s, debounce, where)
        waits = waits or _waits(s, where, place)
        if waits is not None:
            state = State.PENDING
        max_retries = _first(s.max_retries, spec.max_retries, self._default_max_retries)
        timeout_s = _first(s.timeout, spec.timeout_s)
        timeout_ms = self._default_timeout_ms if timeout_s is None else _limit_ms(timeout_s)
        ttl_s = _first(s.ttl, spec.ttl_s)
        expires_at = None if ttl_s is None else (run_at or self._clock.now_ms()) + round(ttl_s * 1000)
        new_id = job_id or uuid7()
        row: list[Any] = [
            new_id,
            spec.name,
            queue,
            priority,
            state,
            payload,
            max_retries,
            timeout_ms,
            run_at,
            relative,
            expires_at,
            request_id,
        ]
        if s.heartbeat is not None or s.on_stall is not None:
            _check_heartbeat(s, spec, where)
        key = s.idempotency_key
        ttl_ms = None if ttl_s is None else round(ttl_s * 1000)
        limited_by, same = _keys(s, spec, payload, debounce, ttl_ms, where)
        own = _in_trace(s.traceparent, own, where) if s.traceparent else own
        ruled = limited_by is not None or same is not None
        if s.retry is None and own is None and not _has_extras(s, spec) and key is None and not ruled:
            while row[-1] is None:  # what is left off at the end is NULL, and costs nothing
                row.pop()
            return NewJob(new_id, spec.name, queue, priority, state, run_at, expires_at, row, waits=waits)
        mark = fingerprint(s, payload) if key is not None else None
        row += [_options(s, spec, own), _json(s.tags), _json(s.meta), s.description, key, mark]
        if ruled:
            row += [limited_by, None if same is None else same.key]
        return NewJob(new_id, spec.name, queue, priority, state, run_at, expires_at, row, key, mark, waits, same, ruled)

    def _spec(self, s: Submission, where: str, *, durable: bool) -> TaskSpec:
        name = s.task or s.type
        if name is None:
            raise InvalidRequest(f"{where}task", "is missing; it names the task to run")
        if s.task is not None and s.type is not None and s.task != s.type:
            raise InvalidRequest(f"{where}type", f"says {s.type!r} where task says {s.task!r}; give one of the two")
        try:
            spec = self.registry.get(name)
        except UnknownTask as exc:
            raise UnknownTask(exc.task, exc.known, where) from None
        if spec.durable and not durable:
            raise InvalidRequest(f"{where}task", f"{name!r} is a workflow; start it with POST /api/v1/workflows")
        return spec

    def _debounce(self, s: Submission, spec: TaskSpec, where: str) -> Debounce | None:
        asked = spec.rules.debounce if s.debounce is None and not s.unique else s.debounce
        if not asked:  # 0 is none, also where the task says otherwise
            return None
        if s.unique:
            raise InvalidRequest(f"{where}debounce", "cannot be given together with unique; give one of the two")
        for name in ("delay", "run_at", "depends_on"):
            if getattr(s, name) is not None and s.debounce is not None:
                raise InvalidRequest(f"{where}debounce", f"cannot be given together with {name}; give one of the two")
            if getattr(s, name) is not None:
                return None
        if not isinstance(asked, Debounce):
            return Debounce(wait=asked)
        if reason := asked.never_waits():
            raise InvalidRequest(f"{where}debounce.max_wait", reason)
        return asked

    def check_size(self, raw: msgspec.Raw, what: str) -> None:
        """TooLarge for what is given to a job or a workflow, if it is over the limit of a payload."""
        if len(raw) > self._max_payload_bytes:
            raise TooLarge(what, len(raw), "max_payload_bytes", self._max_payload_bytes)

    def _payload(self, spec: TaskSpec, raw: msgspec.Raw, where: str, *, checked: bool) -> str:
        data = bytes(raw)
        if data == b"null":
            data = b"{}"
        self.check_size(raw, f"{where}payload" if where else "the payload")
        try:
            text = data.decode()
            if checked:
                spec.binding.check(text)
        except UnicodeDecodeError:
            raise InvalidRequest(f"{where}payload", "is not UTF-8") from None
        except InvalidRequest as exc:
            if where:
                raise InvalidRequest(where + exc.field, exc.reason) from None
            raise
        return text

    def _when(self, s: Submission, debounce: Debounce | None, where: str) -> tuple[State, int | None, int]:
        if s.delay is not None and s.run_at is not None:
            raise InvalidRequest(f"{where}delay", "cannot be given together with run_at; give one of the two")
        now_ms = self._clock.now_ms()
        if debounce is not None:
            return State.SCHEDULED, now_ms + max(round(debounce.wait * 1000), 1), 1
        if s.run_at is not None:
            if s.run_at.tzinfo is None:
                raise InvalidRequest(f"{where}run_at", "needs a time zone, such as 2026-01-31T12:00:00Z or …+01:00")
            run_at, now_ms = to_ms(s.run_at), self._clock.wall_ms()
            if run_at - now_ms > DELAY_S_MAX * 1000:
                raise InvalidRequest(f"{where}run_at", "is more than ten years away")
            return (State.SCHEDULED, run_at, 0) if run_at > now_ms else (State.QUEUED, None, 0)
        if s.delay:
            return State.SCHEDULED, now_ms + round(s.delay * 1000), 1
        return State.QUEUED, None, 0


def _waits(s: Submission, where: str, place: int) -> Waits | None:
    if not s.depends_on:
        if s.on_dependency_failure is not None:
            raise InvalidRequest(
                f"{where}on_dependency_failure", "says nothing without depends_on; name the jobs there"
            )
        return None
    for n, one in enumerate(s.depends_on):
        if isinstance(one, int) and one >= place:
            raise InvalidRequest(
                f"{where}depends_on[{n}]", "a number is the place, from 0, of a job before this one in the same batch"
            )
    return Waits(
        tuple(dict.fromkeys(s.depends_on)), EDGE_KINDS[s.on_dependency_failure or "cancel"], f"{where}depends_on"
    )


def _keys(
    s: Submission, spec: TaskSpec, payload: str, debounce: Debounce | None, ttl_ms: int | None, where: str
) -> tuple[str | None, SameJob | None]:
    """The job's concurrency key, and what it asks of the jobs that are there; None for none."""
    rules = spec.rules
    unique = rules.unique if s.unique is None else Unique() if s.unique is True else s.unique or None
    if s.concurrency_key is not None and unique is None and debounce is None:
        return short_key(s.concurrency_key), None
    if not rules.key_fields and unique is None and debounce is None:
        return None, None
    _check_fields(s, spec, where)
    fields = msgspec.json.decode(payload)
    key = s.concurrency_key or concurrency_key(fields, rules.key_fields)
    return None if key is None else short_key(key), same_job(spec.name, fields, unique, debounce, ttl_ms)


def _check_fields(s: Submission, spec: TaskSpec, where: str) -> None:
    """A misspelt field is in no payload: all jobs would be the same by it. Those of the task were looked at when it was made."""
    if spec.binding.takes_any:
        return
    for option, asked in (("unique", s.unique), ("debounce", s.debounce)):
        for place, field in enumerate(asked.fields or () if isinstance(asked, (Unique, Debounce)) else ()):
            if reason := misnamed(field, spec.binding.names):
                raise InvalidRequest(f"{where}{option}.fields[{place}]", reason)


def fingerprint(s: Submission, payload: str) -> str:
    """What makes two submits with one idempotency key the same: the fields that were given, whatever their order in the JSON.
    Only those: a field that a later version adds must not make another body of the one that came before it. Not the trace: a
    repeated submit is a span of its own."""
    given = {
        name: value
        for name, value in msgspec.structs.asdict(s).items()
        if value is not None and name not in ("type", "traceparent")
    }
    fields = given | {"payload": msgspec.json.decode(payload), "task": s.task or s.type}
    return hashlib.blake2b(msgspec.json.encode(fields, order="sorted"), digest_size=16).hexdigest()


def checked_traceparent(given: str, where: str = "") -> str:
    """One that was given as a field, and not as the header, of which what cannot be read is passed over. InvalidRequest."""
    if parse(given) is None:
        raise InvalidRequest(
            f"{where}traceparent",
            "is none of W3C Trace Context, such as 00-" + "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
    return given.strip()


def _in_trace(given: str, own: dict[str, Any] | None, where: str) -> dict[str, Any]:
    return {**(own or {}), "traceparent": checked_traceparent(given, where)}


def submission_from_options(task: str, payload: str, options: Mapping[str, Any]) -> Submission:
    """The submission that a call in Python asks for. InvalidRequest for an option that is none, or has a wrong type."""
    try:
        given = {name: _plain(value) for name, value in options.items() if value is not None}
        given |= {name: in_seconds(given[name]) for name in ("unique", "debounce") if name in given}
        if isinstance(given.get("depends_on"), str):
            given["depends_on"] = [given["depends_on"]]
        submission = msgspec.convert({**given, "task": task, "payload": msgspec.Raw(payload.encode())}, Submission)
        msgspec.json.encode(submission)  # what came over HTTP is JSON; what comes from Python may be anything
    except msgspec.ValidationError as exc:
        raise InvalidRequest(*in_words(exc, Submission, unknown="is no option of a submit")) from None
    except (TypeError, UnicodeEncodeError) as exc:
        raise InvalidRequest("", f"the options are not JSON: {exc}") from None
    return submission


def _plain(value: Any) -> Any:
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return list(value) if isinstance(value, tuple) else value


def _has_extras(s: Submission, spec: TaskSpec) -> bool:
    return bool(
        s.tags or s.meta or s.description or spec.retry or s.result_ttl is not None or s.failure_ttl is not None
        or spec.result_ttl_s is not None or spec.failure_ttl_s is not None or s.heartbeat is not None or spec.heartbeat_s
    )  # fmt: skip


def _options(s: Submission, spec: TaskSpec, own: dict[str, Any] | None) -> str | None:
    policy = RetryPolicy(intervals=s.retry) if isinstance(s.retry, list) else s.retry or spec.retry
    options: dict[str, Any] = dict(own or {})
    if policy is not None:
        options["retry"] = policy
    for name, seconds in (
        ("result_ttl_ms", _first(s.result_ttl, spec.result_ttl_s)),
        ("failure_ttl_ms", _first(s.failure_ttl, spec.failure_ttl_s)),
    ):
        if seconds is not None:
            options[name] = round(seconds * 1000)
    heartbeat_s = _first(s.heartbeat, spec.heartbeat_s)
    if heartbeat_s:
        options["heartbeat_ms"] = round(heartbeat_s * 1000)
        options["on_stall"] = s.on_stall or spec.on_stall or ON_STALL_DEFAULT
    return _json(options)


def _check_heartbeat(s: Submission, spec: TaskSpec, where: str) -> None:
    if s.heartbeat and s.heartbeat < HEARTBEAT_S_MIN:
        raise InvalidRequest(f"{where}heartbeat", f"is {HEARTBEAT_S_MIN:g} second or more; 0 is none")
    if s.on_stall is not None and not _first(s.heartbeat, spec.heartbeat_s):
        raise InvalidRequest(
            f"{where}on_stall", "needs a heartbeat: the seconds of silence after which the job is stalled"
        )


def _json(value: Any) -> str | None:
    return msgspec.json.encode(value).decode() if value else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _limit_ms(seconds: float) -> int | None:
    """A limit in milliseconds; 0 seconds is none at all, and nothing else is."""
    return max(round(seconds * 1000), 1) if seconds else None


decode_submission: Callable[[bytes], Submission] = msgspec.json.Decoder(Submission).decode
