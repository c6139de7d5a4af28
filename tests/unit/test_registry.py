"""Tasks, and where they are registered."""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import subprocess
import sys
import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import pytest

from miniflow import BaseJob, JobContext, RetryPolicy, context, registry, task
from miniflow.errors import InvalidRequest, MiniFlowError, UnknownTask
from miniflow.payload import bind_signature
from miniflow.registry import Registry, Task, TaskSpec, collecting, valid_queue_name


@pytest.fixture
def tasks() -> Iterator[Registry]:
    """A registry of the test's own, for decorators to register in."""
    with collecting(Registry()) as own:
        yield own


@pytest.fixture
def submitted() -> Iterator[list[tuple[str, str, dict[str, Any]]]]:
    """The submits that were made, as (task, payload, options)."""
    made: list[tuple[str, str, dict[str, Any]]] = []

    def submit(spec: TaskSpec, payload: str, options: dict[str, Any]) -> str:
        made.append((spec.name, payload, options))
        return f"job-{len(made)}"

    registry.bind_submit(submit)
    yield made
    registry.unbind_submit()


def add(a: int, b: int = 2) -> int:
    """Add two numbers.

    Nothing else.
    """
    return a + b


async def fetch(url: str) -> str:
    return url


def spec_of(function: Any = add, name: str = "add", **more: Any) -> TaskSpec:
    return TaskSpec(name=name, function=function, binding=bind_signature(function, name=name), **more)


# ---------------------------------------------------------------------------------------------------- a spec


def test_a_spec_finds_out_the_rest_from_the_function() -> None:
    spec = spec_of()

    assert (spec.executor, spec.description, spec.source) == ("thread", "Add two numbers.", __file__)
    assert spec_of(fetch, "fetch").executor == "async"
    assert repr(spec) == "<TaskSpec add [thread, queue default]>"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "x" * 201},
        {"name": "two words"},
        {"name": "line\n"},
        {"name": "\u200b"},
        {"queue": "two words"},
        {"queue": ""},
        {"queue": "q" * 101},
        {"queue": "tür"},
        {"priority": 1001},
        {"priority": -1001},
        {"priority": 1.5},
        {"priority": True},
        {"max_retries": -1},
        {"max_retries": 1001},
        {"timeout_s": -1},
        {"timeout_s": float("nan")},
        {"ttl_s": float("inf")},
        {"result_ttl_s": "1"},
        {"failure_ttl_s": -0.1},
    ],
)
def test_a_value_out_of_range_is_refused_naming_the_option(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("_s")):
        spec_of(**wrong)


@pytest.mark.parametrize("function", [add, functools.partial(add, b=1)])
def test_a_plain_function_cannot_run_on_the_loop(function: Any) -> None:
    with pytest.raises(TypeError, match="needs an async def"):
        spec_of(function, executor="async")


def test_a_coroutine_function_cannot_run_in_a_thread() -> None:
    with pytest.raises(TypeError, match="no event loop"):
        spec_of(fetch, executor="thread")


@pytest.mark.parametrize("executor", ["dask", ""])
def test_an_executor_that_is_not_there_is_refused_naming_those_that_are(executor: Any) -> None:
    with pytest.raises(ValueError, match="is none of thread, async, process, command"):
        spec_of(executor=executor)


def test_a_coroutine_function_cannot_run_in_a_process() -> None:
    with pytest.raises(TypeError, match="a process has no event loop"):
        spec_of(fetch, executor="process")


def test_a_function_cannot_be_a_command() -> None:
    with pytest.raises(TypeError, match=r"declared in miniflow\.toml"):
        spec_of(executor="command")


@pytest.mark.parametrize("name", ["memory", "cpu_seconds", "open_files"])
def test_what_only_a_process_can_be_held_to_is_no_limit_of_a_thread(tasks: Registry, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} can be limited only with executor='process'"):
        task(limits={name: 100})(add)
    task(limits={name: 100}, executor="process")(add)


def test_by_default_those_run_in_processes_that_did_not_say_otherwise(tasks: Registry) -> None:
    @task
    def unsaid() -> None: ...

    @task(executor="thread")
    def said() -> None: ...

    @task
    async def coroutine() -> None: ...

    tasks.run_unsaid_in_processes()
    assert {spec.name: spec.executor for spec in tasks} == {"unsaid": "process", "said": "thread", "coroutine": "async"}


def test_a_function_that_yields_is_refused(tasks: Registry) -> None:
    with pytest.raises(TypeError, match="yields"):

        @task
        def numbers() -> Iterator[int]:
            yield 1


def test_what_is_no_function_is_refused(tasks: Registry) -> None:
    with pytest.raises(TypeError, match=r"@task\(name=…\)"):
        task("add")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"subclass of miniflow\.BaseJob"):
        task(Registry)
    with pytest.raises(TypeError, match="is the task 'add' already"):
        task(task(add))


def test_no_retry_on_takes_exceptions_only(tasks: Registry) -> None:
    with pytest.raises(TypeError, match="no_retry_on takes classes of exceptions"):
        task(no_retry_on=(int,))(add)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [ValueError("x"), "ValueError", 5, None, ["ValueError"]])
def test_a_no_retry_on_that_is_no_class_is_refused_with_task_and_value(tasks: Registry, value: Any) -> None:
    with pytest.raises(TypeError) as refused:
        task(no_retry_on=value)(add)
    shown = "'ValueError'" if isinstance(value, list) else repr(value)
    assert str(refused.value) == f"task 'add': no_retry_on takes classes of exceptions, got {shown}"


@pytest.mark.parametrize("name", ["a", "A-1", "etl/daily", "a.b:c_d", "q" * 100])
def test_queue_names_that_are_taken(name: str) -> None:
    assert valid_queue_name(name)


@pytest.mark.parametrize("name", ["", "q" * 101, "a b", "a\n", "ä", "a,b", "a'b", None, 5])
def test_queue_names_that_are_not_taken(name: Any) -> None:
    assert not valid_queue_name(name)


# ---------------------------------------------------------------------------------------------------- a registry


def test_a_registered_task_is_found_by_its_name() -> None:
    known = Registry()
    known.add(spec_of())
    known.add(spec_of(fetch, "Fetch"))

    assert known.get("add").function is add
    assert known.find("nothing") is None
    assert (known.names(), [spec.name for spec in known], len(known)) == (["Fetch", "add"], ["Fetch", "add"], 2)
    assert "add" in known
    assert "nothing" not in known


def test_an_unknown_task_is_answered_with_the_closest_names() -> None:
    known = Registry()
    for name in ("send_mail", "send_mails", "sent_mails", "resend_mail", "unrelated"):
        known.add(spec_of(name=name))

    with pytest.raises(UnknownTask) as error:
        known.get("send_mial")

    assert len(error.value.known) == 3
    assert error.value.known[0] == "send_mail"


def test_a_very_long_name_is_refused_without_being_repeated() -> None:
    with pytest.raises(UnknownTask) as error:
        Registry().get("x" * 1_000_000)

    assert len(str(error.value)) < 300


def test_another_function_of_the_same_name_is_refused_naming_both_files() -> None:
    known = Registry()
    known.add(spec_of(source="a.py"))

    with pytest.raises(ValueError, match=r"the task 'add' is defined in b\.py and in a\.py; rename one"):
        known.add(spec_of(fetch, source="b.py"))
    assert known.get("add").function is add


def test_the_same_function_may_be_registered_again() -> None:
    known = Registry()
    known.add(spec_of())
    known.add(spec_of(priority=5))

    assert known.get("add").priority == 5


def test_replace_all_swaps_and_leaves_the_other_apart() -> None:
    live, fresh = Registry(), Registry()
    live.add(spec_of(name="old"))
    fresh.add(spec_of(name="new"))

    live.replace_all(fresh)
    fresh.add(spec_of(name="later"))

    assert live.names() == ["new"]


def test_collecting_holds_for_this_thread_and_this_block_only() -> None:
    seen: list[Registry] = []
    usual = registry.active()
    with collecting(Registry()) as own:
        thread = threading.Thread(target=lambda: seen.append(registry.active()))
        thread.start()
        thread.join()
        assert registry.active() is own

    assert registry.active() is usual
    assert seen == [usual]


# ---------------------------------------------------------------------------------------------------- @task


def test_a_bare_decorator_registers_the_function_under_its_name(tasks: Registry) -> None:
    added = task(add)

    assert isinstance(added, Task)
    assert tasks.get("add") is added.spec
    assert (added.name, added.__name__, added.__doc__) == ("add", "add", add.__doc__)
    assert inspect.signature(added) == inspect.signature(add)
    assert repr(added) == "<Task add>"


def test_the_options_of_the_decorator_reach_the_spec(tasks: Registry) -> None:
    spec = task(
        name="math.add",
        queue="mail",
        priority=5,
        timeout=dt.timedelta(minutes=1),
        max_retries=0,
        retry=[1, 5],
        no_retry_on=KeyError,
        ttl=dt.timedelta(hours=1),
        result_ttl=10,
        failure_ttl=0,
        executor="thread",
    )(add).spec

    assert spec == TaskSpec(
        name="math.add",
        function=add,
        binding=spec.binding,
        queue="mail",
        priority=5,
        timeout_s=60,
        max_retries=0,
        retry=RetryPolicy(intervals=[1, 5]),
        no_retry_on=(KeyError,),
        ttl_s=3600,
        result_ttl_s=10,
        failure_ttl_s=0,
    )


@pytest.mark.parametrize("retry", [RetryPolicy(base=5), {"base": 5}])
def test_a_retry_policy_may_be_a_dict(tasks: Registry, retry: Any) -> None:
    assert task(retry=retry)(add).spec.retry == RetryPolicy(base=5)


@pytest.mark.parametrize("retry", [{"bass": 5}, {"base": -1}, [], [-1], ["x"], "5", 5])
def test_a_bad_retry_policy_is_refused_naming_the_task(tasks: Registry, retry: Any) -> None:
    with pytest.raises(ValueError, match="task 'add': retry"):
        task(retry=retry)(add)


def test_calling_a_task_runs_it_here(tasks: Registry) -> None:
    assert task(add)(1, b=5) == 6


def test_a_direct_call_may_leave_the_context_out_or_give_one(tasks: Registry) -> None:
    @task
    def who(ctx: JobContext, greeting: str, *, mark: str = "!") -> str:
        return f"{greeting} {ctx.job_id or 'nobody'}{mark}"

    assert who("hello", mark="?") == "hello nobody?"  # type: ignore[call-arg, arg-type]
    with context.use(JobContext(job_id="j1")):
        assert who(greeting="hello") == "hello j1!"  # type: ignore[call-arg]
    assert who(JobContext(job_id="j2"), "hello") == "hello j2!"


def test_a_direct_call_that_does_not_fit_is_a_type_error_as_ever(tasks: Registry) -> None:
    @task
    def who(ctx: JobContext, greeting: str) -> None: ...

    with pytest.raises(TypeError, match="greeting"):
        who()  # type: ignore[call-arg]


# ---------------------------------------------------------------------------------------------------- submitting


def test_submit_hands_the_payload_to_the_running_miniflow(tasks: Registry, submitted: list[Any]) -> None:
    assert task(add).submit(1, b=5) == "job-1"
    assert submitted == [("add", '{"a":1,"b":5}', {})]


def test_submit_with_passes_the_options_that_were_given(tasks: Registry, submitted: list[Any]) -> None:
    task(add).submit_with({"queue": "q", "delay": dt.timedelta(minutes=1), "retry": [5]}, 1)

    assert submitted == [("add", '{"a":1}', {"queue": "q", "delay": 60, "retry": RetryPolicy(intervals=[5])})]


@pytest.mark.parametrize("options", [{"que": "q"}, {"delay": -1}, {"timeout": "x"}, {"retry": []}])
def test_a_bad_option_of_a_submit_is_refused(tasks: Registry, submitted: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        task(add).submit_with(options, 1)

    assert submitted == []


def test_submit_without_a_running_miniflow_says_what_to_do(tasks: Registry) -> None:
    with pytest.raises(MiniFlowError, match="no MiniFlow runs in this process; start one with `miniflow serve`"):
        task(add).submit(1)


# ---------------------------------------------------------------------------------------------------- BaseJob


def test_a_job_class_is_registered_under_its_name_with_its_own_defaults(tasks: Registry) -> None:
    class Greet(BaseJob):
        """Say hello."""

        name: str
        times: int = 1

        def _perform(self) -> str:
            return f"hello {self.name}" * self.times

    spec = tasks.get("Greet")
    args, kwargs = spec.binding.arguments('{"name": "you"}')

    assert spec.function(*args, **kwargs) == "hello you"
    assert (spec.timeout_s, spec.max_retries, spec.as_text, spec.description) == (300, 3, True, "Say hello.")
    assert spec.retry == RetryPolicy(intervals=(60, 300, 900))
    assert spec.source == __file__
    with pytest.raises(InvalidRequest, match=r"payload\.times: expected int, got str"):
        spec.binding.check('{"name": "you", "times": "x"}')


def test_a_job_class_overrides_the_options_with_attributes(tasks: Registry) -> None:
    class Slow(BaseJob):
        queue = "low"
        priority = -5
        timeout = dt.timedelta(hours=1)
        max_retries = 1
        retry = {"base": 2}  # noqa: RUF012

        def handle(self) -> None: ...

    spec = tasks.get("Slow")

    assert (spec.queue, spec.priority, spec.timeout_s, spec.max_retries) == ("low", -5, 3600, 1)
    assert spec.retry == RetryPolicy(base=2)


def test_a_job_class_without_annotations_takes_any_keywords(tasks: Registry) -> None:
    class Import(BaseJob):
        def handle(self) -> Any:
            return self.source, self.target  # type: ignore[attr-defined]

    spec = tasks.get("Import")
    args, kwargs = spec.binding.arguments('{"source": "a", "target": "b"}')

    assert spec.function(*args, **kwargs) == ("a", "b")


def test_perform_goes_before_handle(tasks: Registry) -> None:
    class Both(BaseJob):
        def _perform(self) -> str:
            return "_perform"

        def handle(self) -> str:
            return "handle"

    assert tasks.get("Both").function() == "_perform"


def test_a_class_with_nothing_to_perform_is_not_registered(tasks: Registry) -> None:
    class Base(BaseJob):
        source: str = "x"

    class Abstract(Base):
        @abstractmethod
        def _perform(self) -> str: ...

    class Concrete(Abstract):
        def _perform(self) -> str:
            return self.source

    assert tasks.names() == ["Concrete"]
    assert tasks.get("Concrete").function(source="y") == "y"
    with pytest.raises(TypeError, match="Base has neither _perform nor handle"):
        Base.dispatch()


def test_a_job_class_with_a_coroutine_runs_on_the_loop(tasks: Registry) -> None:
    class Fetch(BaseJob):
        async def _perform(self) -> str:
            return "done"

    assert tasks.get("Fetch").executor == "async"


@pytest.mark.parametrize("field", ["_perform", "dispatch", "__class__"])
def test_a_payload_cannot_overwrite_the_methods_of_a_job(tasks: Registry, field: str) -> None:
    class Open(BaseJob):
        def _perform(self) -> str:
            return "mine"

    with pytest.raises(TypeError, match="cannot be the name of a field"):
        tasks.get("Open").function(**{field: 1})


def test_dispatch_makes_a_job_on_the_given_queue(tasks: Registry, submitted: list[Any]) -> None:
    class Greet(BaseJob):
        name: str

        def _perform(self) -> None: ...

    assert Greet.dispatch(name="you", queue="low").id == "job-1"
    assert Greet.dispatch(name="me").id == "job-2"
    assert submitted == [("Greet", '{"name":"you"}', {"queue": "low"}), ("Greet", '{"name":"me"}', {})]


def test_dispatch_with_a_wrong_field_is_refused(tasks: Registry, submitted: list[Any]) -> None:
    class Greet(BaseJob):
        name: str

        def _perform(self) -> None: ...

    with pytest.raises(InvalidRequest, match=r"payload\.nam: is not a parameter of task Greet; it takes name"):
        Greet.dispatch(nam="you")


# ---------------------------------------------------------------------------------------------------- the package


def test_importing_miniflow_imports_neither_huey_nor_the_server() -> None:
    code = (
        "import sys, miniflow; print([m for m in ('huey', 'litestar', 'apsw', 'httpx', 'asyncio') if m in sys.modules])"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
