"""What a huey task is given and what it returns: it comes back as it was, or is refused where it is given."""

from __future__ import annotations

import datetime as dt
import enum
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from msgspec import Meta

from miniflow import registry
from miniflow.errors import InvalidRequest
from miniflow.huey_adapter import JobsHuey
from miniflow.huey_serializer import JsonSerializer, same
from miniflow.registry import Registry
from miniflow.states import State
from tests.engines import Engines, rows, wait_for_state
from tests.waiting import PATIENCE


class Color(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


class Place(NamedTuple):
    x: int
    y: int


@dataclass
class Point:
    x: int


class Name(str): ...


class Nowhere(dt.tzinfo):
    def utcoffset(self, _: dt.datetime | None) -> None:
        return None


COME_BACK = {
    "a tuple": (1, "two", None),
    "what looks like a tag": {"$tuple": [1]},
    "what looks like the tag of Python's own": [{"$python": ["set", [1]]}],
    "what another program writes with a $": {"$set": {"a": 1}},
    "times": [dt.datetime(2026, 1, 31, 12, 0, 0, 1, dt.UTC), dt.timedelta(seconds=1.5), dt.time(12, 30, tzinfo=dt.UTC)],
    "times in zones, also the second of two that read the same": [
        dt.datetime(2026, 10, 24, 12, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.datetime(2026, 10, 25, 2, 30, fold=1),
        dt.time(2, 30, fold=1),
        dt.datetime(2026, 1, 31, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45))),
    ],
    "a long time": dt.timedelta(days=-999_999, microseconds=1),
    "an object": {"a": {"b": [1.5, True, 2**70]}},
    "bytes": [b"", b"\x00\xff"],
    "sets": {"a": {1, (2, "three"), frozenset([b"4"])}, "b": frozenset(), "c": set()},
    "a date": dt.date(2026, 1, 31),
    "decimals": [Decimal("1.50"), Decimal("-0"), Decimal("NaN"), Decimal("1E+20")],
    "a UUID": UUID("0197a000-0000-7000-8000-000000000001"),
    "what JSON has no number for": [math.nan, math.inf, -math.inf, -0.0],
    "keys that are no text": {1: {(2, None): 3}, "four": {True: dt.date(2026, 1, 31)}, None: {}},
}
OTHERWISE = {
    "a member of an Enum": Color.RED,
    "a number of an Enum": [Size.LARGE],
    "an Enum as a key": {Size.LARGE: 1},
    "a namedtuple": {"a": Place(1, 2)},
    "a dataclass": (Point(1),),
    "a class made of one of JSON's": Name("Ada"),
    "a dict that fills itself": defaultdict(list),
    "a time of day in a zone": dt.time(12, tzinfo=ZoneInfo("Europe/Berlin")),
    "a time whose zone says nothing": dt.datetime(2026, 1, 31, tzinfo=Nowhere()),
}


class Values:
    """Tasks of huey's that are given values and return them."""

    def __init__(self, huey: JobsHuey) -> None:
        self.specs = Registry()
        with registry.collecting(self.specs):

            @huey.task()
            def back(value: Any) -> Any:
                return value

            @huey.task()
            def otherwise(name: str) -> Any:
                return OTHERWISE[name]

            @huey.task()
            def typed(color: Color, point: Point) -> str:
                return f"{color} {point}"

            @huey.task()
            def numbers(values: list[float], lots: set) -> Any:  # type: ignore[type-arg]
                return [values, lots]

            @huey.task()
            def pay(amount: float, count: int = 1) -> Any:
                return [amount, count]

            @huey.task()
            def bounded(
                above: Annotated[float, Meta(gt=0)] = 1.0,
                below: Annotated[float, Meta(lt=0)] = -1.0,
                between: Annotated[float, Meta(gt=0, lt=2)] = 1.0,
            ) -> Any:
                return [above, below, between]

        self.back, self.otherwise, self.typed = back, otherwise, typed
        self.numbers, self.pay, self.bounded = numbers, pay, bounded


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as made:
        yield made


@pytest.fixture
def huey() -> JobsHuey:
    return JobsHuey()


@pytest.fixture
def values(huey: JobsHuey) -> Values:
    return Values(huey)


@pytest.mark.parametrize("value", COME_BACK.values(), ids=COME_BACK.keys())
def test_a_value_comes_back_as_it_was_given(value: Any) -> None:
    serializer = JsonSerializer()

    assert same(serializer.deserialize(serializer.serialize(value)), value)


@pytest.mark.parametrize("value", COME_BACK.values(), ids=COME_BACK.keys())
def test_an_argument_and_a_result_come_back_as_they_were_given(
    engines: Engines, huey: JobsHuey, values: Values, value: Any
) -> None:
    engines(values.specs, huey=huey)

    assert same(values.back([value]).get(blocking=True, timeout=5 * PATIENCE), [value])


@pytest.mark.parametrize("value", OTHERWISE.values(), ids=OTHERWISE.keys())
def test_an_argument_that_would_not_come_back_as_it_was_is_refused(
    engines: Engines, huey: JobsHuey, values: Values, value: Any
) -> None:
    engines(values.specs, huey=huey, workers=0)

    with pytest.raises(InvalidRequest, match=r'would .*; make it JSON, or .* serializer="auto"$'):
        values.back(value)
    assert rows(engines.path) == []


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_result_that_would_not_come_back_as_it_was_fails_the_job_and_says_what_to_do(
    engines: Engines, huey: JobsHuey, values: Values, name: str
) -> None:
    engines(values.specs, huey=huey)
    ended = wait_for_state(engines.path, values.otherwise(name).id)

    assert ended.state == State.DEAD_LETTER
    assert 'serializer="auto"' in (ended.last_error or "")


def test_an_annotation_brings_back_what_json_does_not(engines: Engines, huey: JobsHuey, values: Values) -> None:
    engines(values.specs, huey=huey)

    assert values.typed(Color.RED, Point(1)).get(blocking=True, timeout=5 * PATIENCE) == "Color.RED Point(x=1)"


def test_an_annotation_is_no_reason_to_refuse_what_comes_back_under_a_tag(
    engines: Engines, huey: JobsHuey, values: Values
) -> None:
    engines(values.specs, huey=huey)

    given = [[math.nan, 1.5, math.inf], {(1, 2), 3}]
    assert same(values.numbers(*given).get(blocking=True, timeout=5 * PATIENCE), given)
    with pytest.raises(InvalidRequest, match="expected float"):
        values.numbers([None], set())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"$seconds":1.5}', dt.timedelta(seconds=1.5)),
        ('{"$datetime":"2026-01-31T12:00:00"}', dt.datetime(2026, 1, 31, 12)),
        ('[{"$set":{"a":1}}]', [{"$set": {"a": 1}}]),
        ('{"$python":"3.11"}', {"$python": "3.11"}),
        ('{"$python":["3.11",{"$tuple":[]}]}', {"$python": ["3.11", ()]}),
        ('{"$python":["date","soon"]}', {"$python": ["date", "soon"]}),
        ('{"$python":["decimal","x"]}', {"$python": ["decimal", "x"]}),
        ('{"$python":["set",[[1]]]}', {"$python": ["set", [[1]]]}),
        ('{"$python":["dict",[1]]}', {"$python": ["dict", [1]]}),
        ('{"$python":["fold",5]}', {"$python": ["fold", 5]}),
        ('{"$python":["zoned",["soon","Europe/Berlin"]]}', {"$python": ["zoned", ["soon", "Europe/Berlin"]]}),
    ],
)
def test_what_an_older_version_wrote_is_read_as_it_meant_it(text: str, value: Any) -> None:
    assert same(JsonSerializer().deserialize(text), value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (((math.nan, "x"), {}), "expected int"),
        (((), {"count": 1, "total": math.inf}), "is not a parameter"),
        (((math.nan, 1, 2), {}), "too many"),
        (((math.inf,), {"cuont": 3}), "is not a parameter"),
    ],
)
def test_a_number_that_json_has_not_does_not_hide_what_else_is_wrong(
    engines: Engines, huey: JobsHuey, values: Values, call: tuple[tuple[Any, ...], dict[str, Any]], says: str
) -> None:
    engines(values.specs, huey=huey)
    args, kwargs = call

    with pytest.raises(InvalidRequest, match=says):
        values.pay(*args, **kwargs)
    assert same(values.pay(math.nan, 2).get(blocking=True, timeout=5 * PATIENCE), [math.nan, 2])


def test_an_infinity_is_held_against_a_bound_and_nan_is_not(engines: Engines, huey: JobsHuey, values: Values) -> None:
    engines(values.specs, huey=huey)
    given = {"above": math.inf, "below": -math.inf, "between": math.nan}
    assert same(values.bounded(**given).get(blocking=True, timeout=5 * PATIENCE), list(given.values()))
    for wrong in ({"above": -math.inf}, {"below": math.inf}, {"between": math.inf}):
        with pytest.raises(InvalidRequest, match="expected float"):
            values.bounded(**wrong)


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({(1, 2)}, {(1.0, 2.0)}),
        ({(1, 2)}, {(True, 2)}),
        ({0.0}, {-0.0}),
        ({Decimal("1.5")}, {Decimal("1.50")}),
        (frozenset([1]), frozenset([1, 2])),
        (dt.datetime(2026, 10, 24, 12, tzinfo=BERLIN), dt.datetime(2026, 10, 24, 10, tzinfo=dt.UTC)),
        (dt.datetime(2026, 10, 24, 12, tzinfo=BERLIN), dt.datetime(2026, 10, 24, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))),
        (dt.datetime(2026, 10, 25, 2, 30), dt.datetime(2026, 10, 25, 2, 30, fold=1)),
        (dt.time(2, 30), dt.time(2, 30, fold=1)),
        (dt.datetime(2026, 1, 31, tzinfo=dt.UTC), dt.datetime(2026, 1, 31, tzinfo=dt.timezone(dt.timedelta(0), "GMT"))),
    ],
)  # fmt: skip
def test_values_that_python_calls_equal_are_not_the_same(one: Any, other: Any) -> None:
    assert not same(one, other)
    assert same(one, one)


def test_a_zone_and_the_second_of_two_equal_times_come_back_where_the_serializer_is_auto(tmp_path: Path) -> None:
    huey = JobsHuey(serializer="auto")
    values = Values(huey)
    given = [dt.datetime(2026, 10, 24, 12, tzinfo=BERLIN), dt.datetime(2026, 10, 25, 2, 30, fold=1)]
    with Engines(tmp_path) as engines:
        engines(values.specs, huey=huey)
        back = values.back(given).get(blocking=True, timeout=5 * PATIENCE)
    assert [(one.tzinfo, one.fold, one.replace(tzinfo=None)) for one in back] == [
        (one.tzinfo, one.fold, one.replace(tzinfo=None)) for one in given
    ]
