"""Requests made up from the OpenAPI document: each answer is one that the document says, in the shape that it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from miniflow.web.described import OPERATIONS
from tests.api import TASKS, end_of, submit
from tests.effort import examples
from tests.invariants import check_invariants
from tests.servers import Server

pytestmark = pytest.mark.fault

EXAMPLES = examples(2, thorough=20)
"""Requests of each kind for each operation."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), {"sample.py": TASKS}, stop_grace=1.0) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True, replayed=True, deleted=True)


@pytest.fixture(scope="module")
def api(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.fixture
def ids(client: httpx.Client) -> list[str]:
    """Ids of jobs as they may be: ended well, ended badly, waiting."""
    ended = [submit(client, "add", {"a": 1}), submit(client, "bad")]
    return [*(end_of(client, job["id"])["id"] for job in ended), submit(client, "add", {"a": 1}, delay=3600)["id"]]


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_as_documented(label: str, api: Any, ids: list[str]) -> None:
    """And nothing that the document forbids is accepted."""
    method, path = label.split()
    operation = api[path][method]
    for mode in GenerationMode:

        @given(operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Case[Any]) -> None:
            adapt(case, ids)
            case.call_and_validate(timeout=10, excluded_checks=[positive_data_acceptance])

        try:
            check()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # where nothing is asked for, nothing can be asked wrongly


def adapt(case: Case[Any], ids: list[str]) -> None:
    """Ask about jobs that are there, too, and not for what goes on for ever."""
    assume(
        not {None, "null"} & {value for value in case.query.values() if not isinstance(value, list | dict)}
    )  # as left out
    if "job_id" in case.path_parameters:
        known = ids[:2] if case.method == "GET" else ids  # a stream of one that waits would not end
        asked = case.path_parameters["job_id"]
        case.path_parameters["job_id"] = [*known, asked][len(str(asked)) % (len(known) + 1)]
    if case.path == "/api/v1/events" and case.query.get("format", "sse") == "sse":
        case.query["format"] = "json"
