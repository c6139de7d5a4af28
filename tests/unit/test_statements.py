"""Rules for the SQL that can be read off its text."""

from __future__ import annotations

import re

import pytest

from miniflow import (
    compensation_statements,
    definition_statements,
    dependency_statements,
    expansion_statements,
    function_statements,
    rule_statements,
    statements,
    subworkflow_statements,
    trace_statements,
    workflow_statements,
)

STATEMENTS = {
    name: value
    for module in (
        statements,
        dependency_statements,
        rule_statements,
        workflow_statements,
        compensation_statements,
        expansion_statements,
        definition_statements,
        function_statements,
        subworkflow_statements,
        trace_statements,
    )
    for name, value in vars(module).items()
    if name.isupper() and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", str(value))
}
SETS_STATE = {
    name: sql
    for name, sql in STATEMENTS.items()
    if re.search(r"UPDATE jobs\b.*?\bSET\b(?:(?!\bWHERE\b).)*\bstate =", sql, re.DOTALL)
}


def test_there_are_statements_to_look_at() -> None:
    assert len(STATEMENTS) > 40
    assert {
        "BEGIN_IF_LEASED",
        "END_IF_LEASED",
        "CANCEL_IF_WAITING",
        "PROMOTE_DUE",
        "EXPIRE_QUEUED",
    } <= SETS_STATE.keys()


@pytest.mark.parametrize("name", SETS_STATE)
def test_a_statement_that_sets_the_state_is_guarded_by_the_state_it_starts_from(name: str) -> None:
    guard = SETS_STATE[name].partition("WHERE")[2]

    assert re.search(r"\bstate (=|IN)", guard), f"{name} sets the state of whatever row it meets"


@pytest.mark.parametrize("name", [name for name in SETS_STATE if name.endswith("_IF_LEASED")])
def test_a_statement_of_a_lease_holder_is_guarded_by_the_lease(name: str) -> None:
    assert re.search(r"\blease = ", SETS_STATE[name].partition("WHERE")[2])


@pytest.mark.parametrize("name", STATEMENTS)
def test_values_come_as_parameters(name: str) -> None:
    assert not re.search(r"'\s*\|\||%s|\{\w*\}", STATEMENTS[name])
