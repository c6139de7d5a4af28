"""References in payloads, and conditions: what they lead to, and how they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from miniflow.references import BadReference, Known, fill, find, holds, parse_condition

KNOWN = Known(
    {"day": "monday", "n": 3, "rows": [{"id": 7}, {"id": 8}], "none": None},
    {"id": "0198", "name": "report"},
    {"check": {"ok": True, "rows": 0}, "load": [1, 2, 3], "nothing": None},
)


@pytest.mark.parametrize(
    ("given", "filled"),
    [
        ("${input.n}", 3),
        ("${input.rows.0.id}", 7),
        ("${input.rows.-1.id}", 8),
        ("${steps.load}", [1, 2, 3]),
        ("${ steps.check.ok }", True),
        ("${steps.nothing}", None),
        ("${workflow.id}", "0198"),
        ("of ${input.day}: ${steps.load}", "of monday: [1,2,3]"),
        ("$${input.n} is ${input.n}", "${input.n} is 3"),
        ("$${input.n}", "${input.n}"),
        ("costs 5 $", "costs 5 $"),
        ({"a": ["${input.n}", {"b": "${steps.check.rows}"}], "c": 1}, {"a": [3, {"b": 0}], "c": 1}),
    ],
)
def test_references_become_what_they_lead_to(given: Any, filled: Any) -> None:
    assert fill(given, KNOWN) == filled


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("${input.week}", "input has no 'week', it is an object with day, n, rows, none"),
        ("${input.rows.2}", "input.rows has no '2', it is an array of 2"),
        ("${input.rows.first}", "input.rows has no 'first'"),
        ("${input.day.length}", "input.day has no 'length', it is \"monday\""),
        ("${steps.nothing.rows}", "steps.nothing has no 'rows', it is null"),
        ("${workflow.age}", "workflow has no 'age'"),
        ("${steps.load.--1}", "steps.load has no '--1', it is an array of 3"),
        ("${steps.load.²}", "steps.load has no '²'"),
        ("${steps.load." + "1" * 5_000 + "}", "steps.load has no '111"),
    ],
)
def test_what_leads_nowhere_says_where_the_way_ends(given: str, says: str) -> None:
    with pytest.raises(BadReference) as refused:
        fill(given, KNOWN)
    assert says in str(refused.value)


@pytest.mark.parametrize("text", ["${}", "${env.HOME}", "${steps}", "${steps.}", "${input..day}", "a ${other} b"])
def test_what_is_no_reference_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(BadReference, match="refers to nothing"):
        list(find([{"a": text}]))


@pytest.mark.parametrize("text", ["${input.day", "a ${steps.x", "${a${b}}", "$${fine} ${", "${input.day}${"])
def test_one_that_is_not_closed_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(BadReference, match=r"meant as it stands is \$\$\{"):
        list(find({"a": text}))


@pytest.mark.parametrize(("given", "filled"), [("$${", "${"), ("$${a", "${a"), ("$${a}", "${a}"), ("$$${a}", "$${a}")])
def test_two_dollars_before_a_brace_are_one_that_is_meant_as_it_stands(given: str, filled: str) -> None:
    assert list(find(given)) == []
    assert fill(given, KNOWN) == filled


def test_all_references_of_a_value_are_found() -> None:
    value = {"a": "${steps.x.y} and ${input}", "b": ["$${steps.not}", "${steps.z}"], "c": 1}
    assert [(one.root, one.step, one.path) for one in find(value)] == [
        ("steps", "x", ("y",)),
        ("input", None, ()),
        ("steps", "z", ()),
    ]


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("${steps.check.ok}", True),
        ("not ${steps.check.ok}", False),
        ("${steps.check.rows}", False),
        ("not ${input.none}", True),
        ("${input.n} > 2", True),
        ("${input.n} >= 3.5", False),
        ("${input.n} < 4", True),
        ("${input.n} <= ${steps.load.0}", False),
        ('${input.day} == "monday"', True),
        ('${input.day} < "tuesday"', True),
        ("${input.day} != null", True),
        ("${steps.load} == [1, 2, 3]", True),
        ("not ${input.n} == 3", False),
        ("${steps.check.ok} == true", True),
        ("${steps.check.ok} == 1", False),
        ("${steps.check.ok} != 1", True),
        ("${input.n} == 3.0", True),
        ('${steps.check} == {"ok": 1, "rows": 0}', False),
        ('${steps.check} == {"ok": true, "rows": 0}', True),
        ("${steps.load} == [true, 2, 3]", False),
        ("${steps.load.-1} == 3", True),
    ],
)
def test_conditions(condition: str, met: bool) -> None:
    assert holds(parse_condition(condition), KNOWN) is met


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("yes", "is no condition"),
        ("${input.n} ~ 3", "is no condition"),
        ("${input.day} == monday", "a text stands in quotes"),
        ("${env.n} > 3", "refers to nothing"),
        ("${input.n} > ${other}", "refers to nothing"),
    ],
)
def test_what_is_no_condition_is_refused_before_anything_runs(condition: str, says: str) -> None:
    with pytest.raises(BadReference) as refused:
        parse_condition(condition)
    assert says in str(refused.value)


@pytest.mark.parametrize("condition", ["${input.day} > 3", "${input.none} < 3", "${steps.check.ok} > 0"])
def test_only_numbers_and_texts_have_an_order(condition: str) -> None:
    with pytest.raises(BadReference, match="have an order"):
        holds(parse_condition(condition), KNOWN)


def test_deep_values_are_compared_and_those_too_deep_for_it_are_refused() -> None:
    def nested(depth: int) -> list[Any]:
        value: list[Any] = [1]
        for _ in range(depth):
            value = [value]
        return value

    def same(depth: int) -> bool:
        known = KNOWN._replace(steps={"one": nested(depth), "other": nested(depth)})
        return holds(parse_condition("${steps.one} == ${steps.other}"), known)

    assert same(600)
    with pytest.raises(BadReference, match="nested too deeply"):
        same(100_000)
