"""The OpenAPI document tells all: each operation, what it takes, what it answers, and that with examples that are true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis

from miniflow.web import described
from miniflow.web.described import OPERATIONS
from miniflow.web.problems import PROBLEM
from tests.api import SAMPLES, assert_problem, submit
from tests.servers import Server

Json = dict[str, Any]

GREET = """
from typing import Any

from miniflow import WorkflowContext, task, workflow


@task
def greet(name: str, times: int = 1) -> list[str]:
    return [f"Hello, {name}!"] * times


@workflow
def order(ctx: WorkflowContext, payload: dict[str, Any]) -> Any:
    return ctx.wait_event("paid")
"""
METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), {**SAMPLES, "greet.py": GREET}) as running:
        with running.client() as client:  # what a path means whose {name} nobody has filled in
            made = client.post("/api/v1/schedules", json={"name": "{name}", "task": "noop", "cron": "@daily"})
            assert made.status_code == 201, made.text
            made = client.put("/api/v1/workflow-definitions/report", json={"steps": [{"task": "noop"}]})
            assert made.status_code == 201, made.text
        yield running


@pytest.fixture(scope="module")
def document(server: Server) -> Json:
    with server.client() as client:
        found: Json = client.get("/openapi.json").json()
    return found


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def resolved(document: Json, thing: Json) -> Json:
    """What a reference stands for."""
    found: Any = thing
    while "$ref" in found:
        place: Any = document
        for step in found["$ref"].removeprefix("#/").split("/"):
            place = place[step]
        found = place
    whole: Json = found
    return whole


# ---------------------------------------------------------------------------------------------------------- the whole of it


def test_it_is_a_valid_document_of_openapi_3_1(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(document).validate()


def test_each_operation_has_an_entry_and_each_entry_an_operation(document: Json) -> None:
    """One that is missing here goes into OPERATIONS in miniflow/web/described.py."""
    assert {name for name, _ in operations(document)} == set(OPERATIONS)


def test_each_operation_says_what_it_does(document: Json) -> None:
    silent = [
        name
        for name, operation in operations(document)
        if not (operation.get("summary") and operation.get("description") and operation["tags"][0] in described.TAGS)
    ]
    assert silent == [], "give their handlers a summary and a docstring"


def test_the_names_of_operations_are_words_for_a_client_generator(document: Json) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_each_parameter_says_what_it_means(document: Json) -> None:
    silent = [
        f"{name}: {parameter['name']}"
        for name, operation in operations(document)
        for parameter in (resolved(document, one) for one in operation.get("parameters", []))
        if len(parameter.get("description", "").split()) < 2
    ]
    assert silent == [], "give them a description, in the handler's Parameter or in document.PARAMETERS"


def test_each_answer_shows_an_example(document: Json) -> None:
    bare = [
        f"{name}: {status} {media_type}"
        for name, operation in operations(document)
        for status, answer in operation["responses"].items()
        for media_type, content in resolved(document, answer).get("content", {}).items()
        if "example" not in content or "schema" not in content
    ]
    assert bare == []


def test_each_answer_carries_the_request_id(document: Json) -> None:
    without = [
        f"{name}: {status}"
        for name, operation in operations(document)
        for status, answer in operation["responses"].items()
        if "X-Request-ID" not in resolved(document, answer)["headers"]
    ]
    assert without == []


def test_refusals_are_problems_under_api_and_a_detail_elsewhere(document: Json) -> None:
    for name, operation in operations(document):
        kind = PROBLEM if " /api/" in name else "application/json"
        refusals = [resolved(document, answer) for status, answer in operation["responses"].items() if "$ref" in answer]
        assert [list(refusal["content"]) for refusal in refusals] == [[kind]] * len(refusals), name


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_can_be_refused_as_its_kind_can(name: str, document: Json) -> None:
    """A wrong host always; no token, but for the signs of life; on a write another site's page and a full disk."""
    method, path = name.split()
    answers = set(document["paths"][path][method.lower()]["responses"])
    expected = {"421"}
    expected |= {"401", "503"} if path not in ("/health", "/ready") else set()
    expected |= {"403", "507"} if method != "GET" else set()
    expected |= {"400", "413", "422"} if OPERATIONS[name].body is not None else set()
    expected |= {"404"} if "{" in path else set()
    assert expected <= answers


# ----------------------------------------------------------------------------------------------------- examples are true


@pytest.mark.parametrize(
    ("name", "status"), [(name, status) for name, said in OPERATIONS.items() for status in said.answers]
)
def test_an_example_of_an_answer_is_of_its_type(name: str, status: int) -> None:
    answer = OPERATIONS[name].answers[status]
    if answer.shape is not None:
        shape = answer.shape[0] if isinstance(answer.shape, tuple) else answer.shape
        msgspec.json.decode(msgspec.json.encode(answer.example), type=shape)


@pytest.mark.parametrize(
    "name", [name for name, said in OPERATIONS.items() if said.body is not None and "{" not in name]
)
def test_an_example_of_a_request_is_taken(name: str, client: httpx.Client) -> None:
    method, path = name.replace("/{name}", "/{name}" if "/schedules/" in name else "/greet").split()
    body = OPERATIONS[name].body
    assert body is not None
    for title, example in body.examples.items():
        answer = client.request(method, path, json=example)
        assert answer.status_code in OPERATIONS[name].answers, f"{title}: {answer.text}"
    if body.lines is not None:
        answer = client.request(method, path, content=body.lines, headers={"Content-Type": "application/x-ndjson"})
        assert answer.status_code in OPERATIONS[name].answers, answer.text


def test_fields_that_are_explained_are_there(document: Json) -> None:
    schemas = document["components"]["schemas"]
    gone = [
        place
        for place in described.FIELDS
        for kind, _, field in [place.partition(".")]
        if not any(field in schema.get("properties", {}) for name, schema in schemas.items() if kind in ("*", name))
    ]
    assert gone == []


def test_a_job_that_is_answered_says_nothing_that_the_document_does_not(document: Json, client: httpx.Client) -> None:
    job = submit(client, "greet", {"name": "Ada"}, tags=["a"], meta={"b": 1}, description="c", delay=60, ttl=60)
    assert job.keys() <= document["components"]["schemas"]["Job"]["properties"].keys()


# ------------------------------------------------------------------------------------------------------------ over HTTP


def test_options_names_what_the_document_names(document: Json, client: httpx.Client) -> None:
    for path, item in document["paths"].items():
        answer = client.options(re.sub(r"{\w+}", "x", path))
        assert answer.status_code == 204
        assert set(answer.headers["allow"].split(", ")) == {"OPTIONS", *(method.upper() for method in item)}, path


def test_what_the_document_does_not_name_is_405(document: Json, client: httpx.Client) -> None:
    for path, item in document["paths"].items():
        asked = re.sub(r"{\w+}", "x", path)
        for method in METHODS:
            if method not in item:
                answer = client.request(method, asked)
                assert_problem(answer, 405, "method_not_allowed")
                assert item.keys() <= set(answer.headers["allow"].lower().split(", "))


def test_it_is_not_sent_again_to_one_that_has_it(client: httpx.Client) -> None:
    first = client.get("/openapi.json")
    assert first.headers["content-type"] == "application/json"
    again = client.get("/openapi.json", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_it_asks_for_a_token_where_there_is_one_and_only_there(
    document: Json, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert "security" not in document
    assert "securitySchemes" not in document["components"]
    token = "a-token-of-more-than-16-characters"
    with Server(tmp_path_factory.mktemp("token"), token=token) as server, server.client() as client:
        guarded = client.get("/openapi.json").json()
        assert guarded["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        assert guarded["security"] == [{"token": []}]
        for name, operation in operations(guarded):
            if name.startswith("GET ") and "{" not in name and name != "GET /api/v1/events":
                free = operation.get("security") == []
                assert client.get(name.split()[1]).status_code == (200 if free else 401), name


def test_answers_say_how_long_they_took(client: httpx.Client) -> None:
    assert 0 <= float(client.get("/api/v1/jobs").headers["x-process-time-ms"]) < 30_000


def test_the_numbers_behind_the_words_of_a_priority_are_told(document: Json) -> None:
    told = document["components"]["schemas"]["Submission"]["properties"]["priority"]["description"]
    for said in ("`low` is 1", "`medium` 6", "`high` 10", "or 0"):
        assert said in told
