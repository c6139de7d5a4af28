"""What is said of a value that does not fit a type names the field, and what there is instead."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest

from miniflow.validation_errors import in_words, sentence


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    how: Literal["wait", "skip"] | None = None
    when: Annotated[int, msgspec.Meta(ge=0)] | Literal["now"] = 0
    own: str = msgspec.field(default="", name="own-name")


@dataclasses.dataclass
class Plain:
    size: Size


class Keys(TypedDict):
    how: Literal[1, 2]


class Whole(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner | None = None
    many: list[Inner] = []
    by_name: dict[str, Inner] = {}
    pair: tuple[int, Inner] = (0, Inner())
    plain: Plain | None = None
    keys: Keys | None = None
    number: int = 0


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ({"inner": {"how": "stop"}}, "inner.how", "invalid enum value 'stop'; there are skip, wait"),
        ({"inner": {"how": 5}}, "inner.how", "expected str | null, got int; there are skip, wait"),
        ({"inner": {"when": "later"}}, "inner.when", "invalid enum value 'later'; there are now and numbers"),
        ({"many": [{}, {"how": "stop"}]}, "many[1].how", "invalid enum value 'stop'; there are skip, wait"),
        ({"by_name": {"a.b": {"how": "stop"}}}, "by_name[...].how", "invalid enum value 'stop'; there are skip, wait"),
        ({"pair": [1, {"how": "stop"}]}, "pair[1].how", "invalid enum value 'stop'; there are skip, wait"),
        ({"plain": {"size": "huge"}}, "plain.size", "invalid enum value 'huge'; there are small, large"),
        ({"keys": {"how": 3}}, "keys.how", "invalid enum value 3; there are 1, 2"),
        ({"number": "x"}, "number", "expected int, got str"),
        ({"inner": {"hw": 1}}, "inner.hw", "is none; did you mean how?"),
        ({"many": [{"own_name": 1}]}, "many[0].own_name", "is none; did you mean own-name?"),
        ({"x": 1}, "x", "is none; there are inner, many, by_name, pair, plain, keys, number"),
        ([], "", "expected object, got array"),
    ],
)
def test_the_field_and_what_there_is_instead_are_named(value: Any, field: str, reason: str) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(value, Whole)
    assert in_words(error.value, Whole, unknown="is none") == (field, reason)
    if not field:
        assert sentence(error.value, Whole) == reason
    elif reason.startswith("is none"):
        assert sentence(error.value, Whole, unknown="is none") == f"{field} {reason}"
    else:
        assert sentence(error.value, Whole) == f"{field}: {reason}"


def test_of_a_type_that_nothing_is_known_of_nothing_is_offered() -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert({"inner": {"how": "stop"}}, Whole)
    assert in_words(error.value, None) == ("inner.how", "invalid enum value 'stop'")
