"""A task's signature is the schema of its payload."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import json
import uuid
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import pytest

from miniflow.errors import InvalidRequest
from miniflow.payload import Binding, bind_signature
from miniflow.validation_errors import read_validation_error

if TYPE_CHECKING:
    from elsewhere import Missing  # type: ignore[import-not-found]

    from miniflow import context
    from miniflow.context import JobContext


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Order(msgspec.Struct, forbid_unknown_fields=True):
    id: uuid.UUID
    items: list[Point] = []


RAW = msgspec.Raw(b"null")


class Opaque:
    """Nothing that JSON knows of."""


def bind(function: Callable[..., Any]) -> Binding:
    return bind_signature(function, name="X")


def test_a_payload_of_which_some_is_not_known_yet_is_held_against_the_signature_but_for_that() -> None:
    def task(order: Order, n: int, at: dt.datetime | None = None, raw: msgspec.Raw = RAW) -> None: ...

    binding = bind(task)
    known = {"n": 1, "at": "2026-01-01T00:00:00Z", "raw": {"a": 1}, "order": "${steps.a}"}
    binding.check_partly(known, {"order"})
    for given, later, field in [
        (known, {"n"}, "payload.order"),
        ({**known, "m": 1}, {"order"}, "payload.m"),
        ({**known, "m": "${steps.a}"}, {"order", "m"}, "payload.m"),
        ({"n": 1}, set[str](), "payload.order"),
        ({**known, "at": "soon"}, {"order"}, "payload.at"),
    ]:
        with pytest.raises(InvalidRequest) as refused:
            binding.check_partly(given, later)
        assert refused.value.field == field


def test_of_fields_that_have_no_name_those_that_are_known_are_held_against_their_type() -> None:
    def task(a: int, **more: int) -> None: ...

    binding = bind(task)
    binding.check_partly({"a": 1, "b": 2, "c": "${steps.x}"}, {"c"})
    with pytest.raises(InvalidRequest, match="expected int, got str"):
        binding.check_partly({"a": 1, "b": "two", "c": "${steps.x}"}, {"c"})


def refusal(binding: Binding, raw: bytes | str) -> tuple[str, str]:
    """The field and reason of the refusal; check and arguments must refuse alike."""
    with pytest.raises(InvalidRequest) as at_submit:
        binding.check(raw)
    with pytest.raises(InvalidRequest) as at_run:
        binding.arguments(raw)
    assert str(at_run.value) == str(at_submit.value)
    return at_submit.value.field, at_submit.value.reason


# ---------------------------------------------------------------------------------------------------- the payload whole


def takes_dict(options: dict[str, Any]) -> None: ...
def takes_bare_dict(payload: dict) -> None: ...  # type: ignore[type-arg]
def takes_mapping(data: Mapping[str, Any]) -> None: ...
def takes_payload(payload): ...  # type: ignore[no-untyped-def]
def takes_optional(payload: dict[str, Any] | None = None) -> None: ...
def takes_dict_and_context(context: JobContext, payload: dict[str, Any]) -> None: ...


WHOLE = [takes_dict, takes_bare_dict, takes_mapping, takes_payload, takes_optional, takes_dict_and_context]


@pytest.mark.parametrize("function", WHOLE)
def test_a_single_dict_parameter_gets_the_payload_whole(function: Callable[..., Any]) -> None:
    args, kwargs = bind(function).arguments('{"a": 1, "b": [2]}')

    assert args == ()
    assert list(kwargs.values()) == [{"a": 1, "b": [2]}]


@pytest.mark.parametrize("function", WHOLE)
def test_an_empty_payload_is_an_empty_dict_and_a_new_one_each_time(function: Callable[..., Any]) -> None:
    binding = bind(function)
    first, second = (list(binding.arguments("{}")[1].values()) for _ in range(2))

    assert first == second == [{}]
    assert first[0] is not second[0]


@pytest.mark.parametrize(("raw", "kind"), [("[]", "array"), ("null", "null"), ("5", "int"), ('"{}"', "str")])
@pytest.mark.parametrize("function", WHOLE)
def test_a_payload_taken_whole_must_be_an_object(function: Callable[..., Any], raw: str, kind: str) -> None:
    assert refusal(bind(function), raw) == ("payload", f"expected object, got {kind}")


def test_the_values_of_a_typed_dict_are_checked() -> None:
    def count(votes: dict[str, int]) -> None: ...

    assert refusal(bind(count), '{"a": "x"}') == ("payload[...]", "expected int, got str")


def test_a_dict_beside_another_parameter_is_a_field() -> None:
    def f(payload: dict[str, Any], force: bool = False) -> None: ...

    assert bind(f).arguments('{"payload": {"a": 1}}') == ((), {"payload": {"a": 1}, "force": False})


def test_an_unannotated_parameter_of_another_name_is_a_field() -> None:
    def f(text): ...  # type: ignore[no-untyped-def]

    assert bind(f).arguments('{"text": [1]}') == ((), {"text": [1]})


# ---------------------------------------------------------------------------------------------------- fields


def test_fields_are_decoded_to_the_annotated_types() -> None:
    def f(
        when: dt.datetime,
        key: uuid.UUID,
        price: decimal.Decimal,
        colour: Colour,
        mode: Literal["a", "b"],
        point: Point,
        order: Order | None,
        raw: bytes,
        anything: object,
    ) -> None: ...

    key = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    _, kwargs = bind(f).arguments(
        json.dumps(
            {
                "when": "2026-01-31T12:00:00Z",
                "key": key,
                "price": "1.50",
                "colour": "red",
                "mode": "b",
                "point": {"x": 1},
                "order": {"id": key, "items": [{"x": 1, "y": 2}]},
                "raw": "aGk=",
                "anything": {"a": None},
            }
        )
    )

    assert kwargs == {
        "when": dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC),
        "key": uuid.UUID(key),
        "price": decimal.Decimal("1.50"),
        "colour": Colour.RED,
        "mode": "b",
        "point": Point(1),
        "order": Order(uuid.UUID(key), [Point(1, 2)]),
        "raw": b"hi",
        "anything": {"a": None},
    }


def test_fields_left_out_have_their_defaults() -> None:
    def f(a: int, b: str = "x", c: Colour = Colour.RED) -> None: ...

    assert bind(f).arguments('{"a": 1}') == ((), {"a": 1, "b": "x", "c": Colour.RED})


def test_a_mutable_default_is_not_shared_between_jobs() -> None:
    def f(a: int, tags: list[str] = ["new"]) -> None: ...  # noqa: B006 - what this is about

    binding = bind(f)
    binding.arguments('{"a": 1}')[1]["tags"].append("changed")

    assert binding.arguments('{"a": 1}')[1]["tags"] == ["new"]


def test_a_default_that_json_cannot_write_reaches_the_function() -> None:
    def f(a: int, b: Any = Opaque) -> None: ...

    assert bind(f).arguments('{"a": 1}')[1]["b"] is Opaque


def test_a_function_without_parameters_takes_the_empty_payload_and_no_other() -> None:
    def f() -> None: ...

    binding = bind(f)

    assert binding.arguments("{}") == binding.arguments(b"{}") == ((), {})
    assert refusal(binding, '{"a": 1}') == ("payload.a", "is not a parameter of task X; it takes no parameters")


def test_positional_only_parameters_are_filled_by_name() -> None:
    def f(a: int, b: int = 2, /, c: int = 3) -> tuple[int, int, int]:
        return a, b, c

    args, kwargs = bind(f).arguments('{"a": 1, "c": 5}')

    assert f(*args, **kwargs) == (1, 2, 5)


def test_star_args_are_ignored() -> None:
    def f(a: int, *rest: int) -> None: ...

    binding = bind(f)

    assert binding.arguments('{"a": 1}') == ((), {"a": 1})
    with pytest.raises(InvalidRequest, match="too many positional arguments"):
        binding.from_call((1, 2), {})


def test_double_star_takes_the_fields_that_have_no_name() -> None:
    def f(a: int = 0, **rest: Any) -> None: ...

    assert bind(f).arguments('{"a": 1, "b": 2, "class": 3}') == ((), {"a": 1, "b": 2, "class": 3})
    assert bind(f).arguments("{}") == ((), {})


def test_the_annotation_of_double_star_holds_for_each_extra_field() -> None:
    def f(**rest: int) -> None: ...

    assert bind(f).arguments('{"b": 2}') == ((), {"b": 2})
    assert refusal(bind(f), '{"b": "x"}') == ("payload[...]", "expected int, got str")


def test_extra_fields_come_in_an_object_only() -> None:
    def f(**rest: Any) -> None: ...

    assert refusal(bind(f), "[1]") == ("payload", "expected object, got array")


def test_a_wrapped_function_is_read_through_its_wrapper() -> None:
    def f(order: Order) -> None: ...

    @functools.wraps(f)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert refusal(bind(wrapper), "{}") == ("payload.order", "is missing")


# ---------------------------------------------------------------------------------------------------- the context


def by_type_checking(a: int, ctx: JobContext) -> None: ...
def by_attribute(ctx: context.JobContext, a: int) -> None: ...
def by_optional(a: int, *, ctx: JobContext | None = None) -> None: ...


@pytest.mark.parametrize("function", [by_type_checking, by_attribute, by_optional])
def test_the_context_is_no_field_even_where_its_name_cannot_be_resolved(function: Callable[..., Any]) -> None:
    binding = bind(function)

    assert binding.context_parameter == "ctx"
    assert binding.arguments('{"a": 1}') == ((), {"a": 1})
    assert refusal(binding, '{"a": 1, "ctx": {}}') == ("payload.ctx", "is not a parameter of task X; it takes a")


def test_a_context_annotated_with_the_class_itself_is_found() -> None:
    from miniflow.context import JobContext

    def f(a: int, ctx: Any) -> None: ...

    f.__annotations__["ctx"] = JobContext

    assert bind(f).context_parameter == "ctx"


def test_a_payload_cannot_pass_for_the_context_through_double_star() -> None:
    def f(ctx: JobContext, **rest: Any) -> None: ...

    assert refusal(bind(f), '{"ctx": 1}')[0] == "payload.ctx"


def test_a_positional_only_context_is_refused_at_registration() -> None:
    def f(ctx: JobContext, /) -> None: ...

    with pytest.raises(TypeError, match="task 'X': the context 'ctx' is passed by name"):
        bind(f)


def test_two_contexts_are_refused_at_registration() -> None:
    def f(one: JobContext, two: JobContext) -> None: ...

    with pytest.raises(TypeError, match="both annotated JobContext"):
        bind(f)


# ---------------------------------------------------------------------------------------------------- refusals


def wrong(
    a: int,
    b: str = "",
    order: Order | None = None,
    points: list[Point] = [],  # noqa: B006
    votes: dict[int, int] = {},  # noqa: B006
    least: Annotated[int, msgspec.Meta(ge=0)] = 0,
) -> None: ...


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        ("{}", "payload.a", "is missing"),
        ('{"a": "x"}', "payload.a", "expected int, got str"),
        ('{"a": 1, "z": 2}', "payload.z", "is not a parameter of task X; it takes a, b, order, points, votes, least"),
        ('{"a": 1, "least": -1}', "payload.least", "expected int >= 0"),
        ('{"a": 1, "points": [{"x": 1}, {"x": "y"}]}', "payload.points[1].x", "expected int, got str"),
        ('{"a": 1, "points": [{}]}', "payload.points[0].x", "is missing"),
        ('{"a": 1, "order": {"id": "no"}}', "payload.order.id", "invalid UUID"),
        ('{"a": 1, "order": {"z": 1}}', "payload.order.z", "is not a known field"),
        ('{"a": 1, "votes": {"x": 1}}', "payload.votes", "expected int, got str, in a key"),
        ('{"a": 1, "votes": {"1": "x"}}', "payload.votes[...]", "expected int, got str"),
        ("[1]", "payload", "expected object, got array"),
        ("", "payload", "is not valid JSON: input data was truncated"),
        ('{"a": 1} x', "payload", "is not valid JSON: JSON is malformed: trailing characters (byte 10)"),
        ("\ud800", "payload", None),
        (b'{"b": "\xff", "a": 1}', "payload", None),
        ('{"a": 1, "b": "\\ud800"}', "payload", None),
    ],
)
def test_a_refusal_names_the_field_and_the_reason(raw: bytes | str, field: str, reason: str | None) -> None:
    found = refusal(bind(wrong), raw)

    assert found[0] == field
    assert reason is None or found[1] == reason


def test_json_nested_beyond_the_stack_is_refused_not_raised() -> None:
    assert refusal(bind(takes_dict), '{"a":' + "[" * 100_000) == ("payload", "is nested too deeply")


def test_a_client_cannot_have_a_long_name_repeated_to_it() -> None:
    field, reason = refusal(bind(wrong), json.dumps({"a": 1, "z" * 100_000: 1}))

    assert len(field) + len(reason) < 300


def test_a_task_of_many_parameters_lists_only_some() -> None:
    source = f"def f({', '.join(f'p{n}: int = 0' for n in range(50))}): ..."
    namespace: dict[str, Any] = {}
    exec(source, namespace)

    assert refusal(bind(namespace["f"]), '{"z": 1}')[1].endswith("p18, p19, …")


@pytest.mark.parametrize(
    ("kind", "raw", "reason"),
    [
        (int, '"x"', "expected int, got str"),
        (int, "1.5", "expected int, got float"),
        (int, "1e400", "number out of range"),
        (int | None, '"x"', "expected int | null, got str"),
        (Colour, '"z"', "invalid enum value 'z'"),
        (Literal[1, 2], "3", "invalid enum value 3"),
        (uuid.UUID, '"z"', "invalid UUID"),
        (dt.datetime, '"z"', "invalid RFC3339 encoded datetime"),
        (decimal.Decimal, '"z"', "invalid decimal string"),
        (bytes, '"*"', "invalid base64 encoded string"),
        (Annotated[str, msgspec.Meta(max_length=2)], '"abc"', "expected str of length <= 2"),
        (Annotated[str, msgspec.Meta(pattern="^a$")], '"b"', "expected str matching regex '^a$'"),
        (tuple[int, int], "[1]", "expected array of length 2"),
    ],
)
def test_each_wording_of_msgspec_becomes_plain_words(kind: Any, raw: str, reason: str) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.json.decode(raw, type=kind)

    assert read_validation_error(str(error.value)) == ("", reason, None)


def test_an_error_raised_by_a_users_own_type_keeps_its_words() -> None:
    assert read_validation_error("Start must come before end - at `$.span`") == (
        ".span",
        "start must come before end",
        None,
    )


# ---------------------------------------------------------------------------------------------------- at registration


def test_an_annotation_that_json_cannot_fill_is_refused_with_a_remedy() -> None:
    def f(a: int, b: list[Opaque]) -> None: ...

    with pytest.raises(TypeError) as error:
        bind(f)

    assert str(error.value) == (
        "task 'X': parameter 'b' is annotated list[Opaque], and a Opaque cannot be read from JSON; use JSON types, a dataclass "
        "or a msgspec.Struct, or annotate it dict and build the Opaque inside the task"
    )


def test_a_union_that_json_cannot_tell_apart_is_refused() -> None:
    def f(a: list[int] | set[int]) -> None: ...

    with pytest.raises(
        TypeError, match=r"task 'X': parameter 'a' is annotated .* cannot be read from JSON: Type unions"
    ):
        bind(f)


def test_a_name_that_cannot_be_resolved_is_refused() -> None:
    def f(a: Missing) -> None: ...

    with pytest.raises(TypeError, match="parameter 'a' is annotated Missing, which cannot be resolved"):
        bind(f)


def test_the_return_annotation_does_not_matter() -> None:
    def f(a: int) -> Missing: ...

    assert bind(f).arguments('{"a": 1}') == ((), {"a": 1})


def test_a_class_that_contains_itself_can_be_a_parameter() -> None:
    def f(root: Node) -> None: ...

    _, kwargs = bind(f).arguments('{"root": {"children": [{"children": []}]}}')

    assert kwargs["root"] == Node([Node([])])


class Node(msgspec.Struct):
    children: list[Node]


# ---------------------------------------------------------------------------------------------------- from a Python call


def test_a_call_becomes_a_payload_that_decodes_to_the_same_arguments() -> None:
    def f(a: int, when: dt.datetime, ctx: JobContext, point: Point = Point(0), **rest: Any) -> None: ...  # noqa: B008

    binding = bind(f)
    when = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    raw = binding.from_call((1, when), {"point": Point(1, 2), "more": [1]})

    assert binding.arguments(raw) == ((), {"a": 1, "when": when, "point": Point(1, 2), "more": [1]})


@pytest.mark.parametrize("call", [(({"a": 1},), {}), ((), {"payload": {"a": 1}})])
def test_a_call_with_a_dict_is_the_payload_whole(call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    assert bind(takes_optional).from_call(*call) == '{"a":1}'


def test_a_call_that_leaves_out_an_optional_dict_is_an_empty_payload() -> None:
    assert bind(takes_optional).from_call((), {}) == bind(takes_optional).from_call((None,), {}) == "{}"


@pytest.mark.parametrize(
    ("args", "kwargs", "field", "reason"),
    [
        ((), {}, "payload.a", "is missing"),
        (("x",), {}, "payload.a", "expected int, got str"),
        ((1,), {"c": 2}, "payload.c", "is not a parameter of task X; it takes a, b"),
        ((1,), {"ctx": 2}, "payload.ctx", "is not a parameter of task X; it takes a, b"),
        ((1,), {"a": 2}, "payload.a", "is given twice, by its place and by its name"),
        ((1, 2, 3), {}, "payload", "too many positional arguments; task X: it takes a, b"),
        ((1, Opaque), {}, "payload.b", None),
        ((1, {(1, 2): 3}), {}, "payload.b", None),
        ((1, "\ud800"), {}, "payload.b", None),
    ],
)
def test_a_call_that_does_not_fit_is_refused_naming_the_parameter(
    args: tuple[Any, ...], kwargs: dict[str, Any], field: str, reason: str | None
) -> None:
    def f(a: int, b: Any = None, *, ctx: JobContext) -> None: ...

    with pytest.raises(InvalidRequest) as error:
        bind(f).from_call(args, kwargs)

    assert error.value.field == field
    assert reason is None or error.value.reason == reason


def test_a_call_of_a_whole_payload_with_something_else_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"payload: expected object, got list"):
        bind(takes_dict).from_call(([1],), {})


# ---------------------------------------------------------------------------------------------------- as JSON Schema


def test_the_schema_is_self_contained() -> None:
    def ship(
        order: Order,
        tags: list[str] = ["new"],  # noqa: B006 - what this is about
        least: Annotated[int, msgspec.Meta(ge=0)] = 3,
        odd: Any = Opaque,
    ) -> None:
        """Send an order.

        At once.
        """

    schema = bind_signature(ship, name="ship").json_schema()

    assert schema == {
        "title": "ship",
        "description": "Send an order.\n\nAt once.",
        "type": "object",
        "properties": {
            "order": {"$ref": "#/$defs/Order"},
            "tags": {"type": "array", "items": {"type": "string"}, "default": ["new"]},
            "least": {"type": "integer", "minimum": 0, "default": 3},
            "odd": {},
        },
        "required": ["order"],
        "additionalProperties": False,
        "$defs": schema["$defs"],
    }
    assert set(schema["$defs"]) == {"Order", "Point"}


def test_the_schema_of_a_whole_payload_is_any_object() -> None:
    assert bind(takes_optional).json_schema() == {"title": "X", "type": "object"}


@pytest.mark.parametrize("kind", [object, Hashable, Iterable[int]])
def test_the_schema_of_what_json_has_no_word_for_is_any_value(kind: Any) -> None:
    def some(x: Any, more: Any = None) -> None: ...

    some.__annotations__ |= {"x": dict[str, kind], "more": kind | None}
    properties = bind(some).json_schema()["properties"]
    assert properties["x"] == {"type": "object", "additionalProperties": {"description": "any JSON value"}}
    assert "more" in properties


def test_the_schema_of_double_star_allows_more() -> None:
    def some(**rest: Any) -> None: ...
    def numbers(**rest: int) -> None: ...

    assert bind(some).json_schema()["additionalProperties"] is True
    assert bind(numbers).json_schema()["additionalProperties"] == {"type": "integer"}


def test_a_schema_handed_out_may_be_changed() -> None:
    binding = bind(takes_optional)
    binding.json_schema()["title"] = "changed"

    assert binding.json_schema()["title"] == "X"
