"""What each profile of the benchmark sends."""

from __future__ import annotations

import json

import pytest

from miniflow.bench.profiles import FLAKY, FLAKY_DEAD, MIXES, PROFILES, WORK, Unusable, setup
from miniflow.retry import RetryPolicy
from miniflow.workflow_graph import decode_workflow


def bodies(profile: str, n: int, queue: str | None = None) -> list[dict[str, object]]:
    """The first ``n`` jobs of a profile."""
    made = setup(profile)
    plan = made.plan(made.phases()[0], url="http://x", token="", queue=queue, samples=0)
    return [json.loads(plan.bodies[plan.pattern[i % len(plan.pattern)]]) for i in range(n)]


def test_every_fifth_job_of_flaky_fails_half_the_time_and_may_be_retried_twice() -> None:
    sent = bodies("flaky", 1_000)
    flaky = [job for job in sent if job["task"] == "flaky"]
    assert [i for i, job in enumerate(sent) if job["task"] == "flaky"] == list(range(0, 1_000, 5))
    assert {(job["max_retries"], str(job["payload"])) for job in flaky} == {(2, "{'failure_rate': 0.5}")}
    assert FLAKY_DEAD == 0.125
    assert RetryPolicy(**FLAKY.jobs[0]["retry"]).delay_s(2) < 1
    assert {job["task"] for job in sent} == {"flaky", *WORK.tasks}


def test_the_tasks_of_the_bodies_are_known() -> None:
    for mix in MIXES.values():
        texts, pattern = mix.plan_parts("bench")
        tasks = mix.tasks_of_bodies()
        assert [json.loads(text)["task"] for text in texts] == tasks
        assert [tasks[kind] for kind in pattern] == [job["task"] for job in mix.jobs]


def test_on_another_ones_server_the_jobs_have_a_queue_of_their_own() -> None:
    assert {job.get("queue") for job in bodies("baseline", 3)} == {None}
    assert {job.get("queue") for job in bodies("flaky", 40, queue="bench")} == {"bench"}


def test_a_spike_is_ten_times_the_rate_and_then_the_rate_again() -> None:
    phases = setup("spike", rate=50, duration=4).phases()
    assert [(phase.rate, phase.requests) for phase in phases] == [(50, 200), (500, 1_000), (50, 200)]
    assert [phase.drain for phase in phases] == [False, False, True], "the backlog is what is looked at"


def test_steps_of_stress_rise() -> None:
    made = setup("stress", rate=500, duration=2)
    steps = [made.step(number) for number in range(1, 6)]
    assert [step.rate for step in steps] == [500, 700, 980, 1_400, 1_900]
    assert [step.requests for step in steps] == [1_000, 1_400, 1_960, 2_800, 3_800]
    slow = setup("stress", rate=0.5)
    assert [slow.step(number).rate for number in (1, 6, 12)] == [1, 3, 20]


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_asked_for_replaces_the_defaults(name: str) -> None:
    profile = PROFILES[name]
    asked = {"workers": 3, "concurrency": 7}
    for field in ("jobs", "rate", "duration"):
        if getattr(profile, field) is not None:
            asked[field] = 11
    made = setup(name, **asked)
    assert {field: getattr(made, field) for field in asked} == asked
    for phase in made.phases():
        assert made.plan(phase, url="http://x", token="", queue=None, samples=0).connections <= 7


@pytest.mark.parametrize(
    ("name", "asked", "complaint"),
    [
        ("workflow", {"rate": 5}, "--rate means nothing to the profile workflow; it has --jobs"),
        ("load", {}, "'load' is none; there are smoke, baseline"),
        ("spike", {"jobs": 5}, "--jobs means nothing to the profile spike; it has --rate, --duration"),
        ("flaky", {"rate": 5}, "--rate means nothing to the profile flaky; it has --jobs"),
        ("flaky", {"mix": "noop"}, "--mix cannot be given"),
    ],
)
def test_what_means_nothing_to_a_profile_is_refused(name: str, asked: dict[str, object], complaint: str) -> None:
    with pytest.raises(Unusable) as caught:
        setup(name, **asked)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(("mix", "tasks"), [("work", ["transform", "compute", "notify"]), ("noop", ["noop"] * 3)])
def test_a_workflow_is_one_request_with_three_steps_each_after_the_one_before(mix: str, tasks: list[str]) -> None:
    made = setup("workflow", mix=mix)
    plan = made.plan(made.phases()[0], url="http://x", token="", queue="bench", samples=500)
    assert (plan.path, plan.requests, plan.pattern) == ("/api/v1/workflows", 3_000, [0])
    steps = decode_workflow(plan.bodies[0].encode()).steps or []
    assert [(step.task, step.queue) for step in steps] == [(task, "bench") for task in tasks]
    assert [step.needs for step in steps] == [None] * 3  # so each needs the one before it


def test_samples_are_spread_over_the_phase() -> None:
    made = setup("baseline", jobs=10_000)
    plan = made.plan(made.phases()[1], url="http://x", token="", queue="bench", samples=500)
    assert plan.sample_every == 20
