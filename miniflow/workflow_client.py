"""``client.workflows``: workflows from Python, for both clients; what they ask is in ``workflow_calls.py``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any, Unpack

from miniflow import workflow_calls as calls
from miniflow.exchange import AsyncCarryOut, AsyncIterate, CarryOut, Iterate
from miniflow.trace_answers import Export, Trace
from miniflow.workflow_answers import Workflow, WorkflowDefinition, WorkflowEvent, WorkflowPage, WorkflowStep
from miniflow.workflow_calls import DefinitionOptions, FunctionOptions, WorkflowOptions, WorkflowRef

Steps = Sequence[Mapping[str, Any]]
Definitions = list[WorkflowDefinition]
SAME = object()
"""The input of the run before."""


class Workflows:
    """The workflows of a server. Wherever one is meant, its id or a Workflow will do."""

    def __init__(self, run: CarryOut, iterate: Iterate, repeats: int) -> None:
        self._run, self._iterate, self._repeats = run, iterate, repeats

    def start(
        self, name: str, steps: Steps, *, repeats: int | None = None, **options: Unpack[WorkflowOptions]
    ) -> Workflow:
        """Start a workflow; when this returns, all of it is on the server's disk.

        A step is ``{"name": …, "task": …, "payload": …}`` with ``needs``, ``when`` and options of a job. Without ``needs`` they
        run one after the other. A payload may refer to the input and to steps before it: ``"${input.day}"``, ``"${steps.load}"``.
        With ``for_each`` there is a job for each item of a list, and its payload knows ``"${item}"`` and ``"${index}"``.
        With ``compensate`` a step says what undoes it when the workflow does not end well, and ``on_failure`` what is run then.
        It is repeated as a submit is.
        """
        tries = self._repeats if repeats is None else repeats
        return self._run(calls.start(name, steps, options, repeats=tries))

    def run(
        self,
        definition: str,
        *,
        version: int | None = None,
        repeats: int | None = None,
        **options: Unpack[WorkflowOptions],
    ) -> Workflow:
        """Start a kept definition, of the newest version or of another. It is repeated as a submit is."""
        tries = self._repeats if repeats is None else repeats
        return self._run(calls.run(definition, version, options, repeats=tries))

    def define(self, name: str, steps: Steps, **options: Unpack[DefinitionOptions]) -> WorkflowDefinition:
        """Keep steps under a name, to be run by it: as a new version, unless they are as they were."""
        return self._run(calls.define(name, steps, options))

    def definition(self, name: str, version: int | None = None) -> WorkflowDefinition:
        """A kept definition: the newest version, or another. NotFound if there is none."""
        return self._run(calls.definition(name, version))

    def definitions(self, name: str | None = None) -> Definitions:
        """The newest version of each definition, or all versions of one; without their steps."""
        return self._run(calls.definitions(name))

    def undefine(self, name: str) -> None:
        """Delete a definition with all its versions; its runs stay."""
        self._run(calls.undefine(name))

    def start_function(
        self, workflow: str, input: Any = None, *, repeats: int | None = None, **options: Unpack[FunctionOptions]
    ) -> Workflow:
        """Start a run of the durable function ``workflow``; when this returns, it is on the server's disk. It is repeated as a
        submit is."""
        tries = self._repeats if repeats is None else repeats
        return self._run(calls.start_function(workflow, input, options, repeats=tries))

    def send_event(
        self,
        workflow: WorkflowRef,
        name: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        repeats: int | None = None,
    ) -> WorkflowEvent:
        """Send an event to a run, for its ``ctx.wait_event(name)``. Refused if it has one of that name: the first one stays. It
        is repeated as a submit is."""
        tries = self._repeats if repeats is None else repeats
        return self._run(calls.send_event(workflow, name, payload, idempotency_key, repeats=tries))

    def get(self, workflow: WorkflowRef) -> Workflow:
        """The workflow as it is now, with its steps. NotFound if there is none."""
        return self._run(calls.get(workflow))

    def wait(self, workflow: WorkflowRef, timeout: float | None = None) -> Workflow:
        """The workflow when it has ended, well or not. WorkflowNotEnded (a TimeoutError) after ``timeout`` seconds."""
        return self._run(calls.wait(workflow, timeout))

    def step(self, workflow: WorkflowRef, step: int | str) -> WorkflowStep:
        """One of its steps, by its index or its name, with what is left out of the workflow since it is long."""
        return self._run(calls.step(workflow, step))

    def trace(self, workflow: WorkflowRef) -> Trace:
        """What took how long: the run, its steps, their attempts."""
        return self._run(calls.trace(workflow))

    def otlp(self, workflow: WorkflowRef) -> Export:
        """The same as the JSON of OpenTelemetry, for the ``/v1/traces`` of a collector."""
        return self._run(calls.otlp(workflow))

    def list(
        self, *, name: str | None = None, status: str | None = None, nested: bool = True, limit: int | None = None
    ) -> Iterator[Workflow]:
        """Workflows, newest first, without their steps; each page is asked for when it is needed. ``nested=False``: without those
        that are steps of others, or were spawned."""
        return self._iterate(calls.all_pages(name=name, status=status, nested=nested, limit=limit))

    def page(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        nested: bool = True,
        limit: int = 50,
        cursor: str | None = None,
    ) -> WorkflowPage:
        """A page of them."""
        return self._run(calls.page(name=name, status=status, nested=nested, limit=limit, cursor=cursor))

    def cancel(self, workflow: WorkflowRef) -> Workflow:
        """Cancel it. While a step runs, which is asked to stop, it is ``running`` still. Refused if it has ended otherwise."""
        return self._run(calls.verb("cancel", workflow))

    def retry(self, workflow: WorkflowRef) -> Workflow:
        """Run one on that has failed or was cancelled, from the steps that did not end well."""
        return self._run(calls.verb("retry", workflow))

    def pause(self, workflow: WorkflowRef) -> Workflow:
        """Begin no further step; what is queued or runs goes on."""
        return self._run(calls.verb("pause", workflow))

    def resume(self, workflow: WorkflowRef) -> Workflow:
        """Go on with one that is paused."""
        return self._run(calls.verb("resume", workflow))

    def rerun(self, workflow: WorkflowRef, from_step: str | None = None, *, input: Any = SAME) -> Workflow:
        """A new run of the same steps: of all, or of ``from_step`` and those that need it; what the others returned is taken
        over. With the input of the run before, or another."""
        return self._run(calls.rerun(workflow, from_step, {} if input is SAME else {"input": input}))

    def delete(self, workflow: WorkflowRef) -> None:
        """Delete one that has ended, with its jobs."""
        self._run(calls.delete(workflow))

    def events(self, workflow: WorkflowRef) -> Iterator[Workflow]:
        """The workflow as it is, and after each change of it or of one of its steps, until it has ended."""
        return self._iterate(calls.events(workflow))


class AsyncWorkflows:
    """``Workflows`` with ``await`` and ``async for``."""

    def __init__(self, run: AsyncCarryOut, iterate: AsyncIterate, repeats: int) -> None:
        self._run, self._iterate, self._repeats = run, iterate, repeats

    async def start(
        self, name: str, steps: Steps, *, repeats: int | None = None, **options: Unpack[WorkflowOptions]
    ) -> Workflow:
        """See ``Workflows.start``."""
        tries = self._repeats if repeats is None else repeats
        return await self._run(calls.start(name, steps, options, repeats=tries))

    async def run(
        self,
        definition: str,
        *,
        version: int | None = None,
        repeats: int | None = None,
        **options: Unpack[WorkflowOptions],
    ) -> Workflow:
        """See ``Workflows.run``."""
        tries = self._repeats if repeats is None else repeats
        return await self._run(calls.run(definition, version, options, repeats=tries))

    async def define(self, name: str, steps: Steps, **options: Unpack[DefinitionOptions]) -> WorkflowDefinition:
        """See ``Workflows.define``."""
        return await self._run(calls.define(name, steps, options))

    async def definition(self, name: str, version: int | None = None) -> WorkflowDefinition:
        """See ``Workflows.definition``."""
        return await self._run(calls.definition(name, version))

    async def definitions(self, name: str | None = None) -> Definitions:
        """See ``Workflows.definitions``."""
        return await self._run(calls.definitions(name))

    async def undefine(self, name: str) -> None:
        """See ``Workflows.undefine``."""
        await self._run(calls.undefine(name))

    async def start_function(
        self, workflow: str, input: Any = None, *, repeats: int | None = None, **options: Unpack[FunctionOptions]
    ) -> Workflow:
        """See ``Workflows.start_function``."""
        tries = self._repeats if repeats is None else repeats
        return await self._run(calls.start_function(workflow, input, options, repeats=tries))

    async def send_event(
        self,
        workflow: WorkflowRef,
        name: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        repeats: int | None = None,
    ) -> WorkflowEvent:
        """See ``Workflows.send_event``."""
        tries = self._repeats if repeats is None else repeats
        return await self._run(calls.send_event(workflow, name, payload, idempotency_key, repeats=tries))

    async def get(self, workflow: WorkflowRef) -> Workflow:
        """See ``Workflows.get``."""
        return await self._run(calls.get(workflow))

    async def wait(self, workflow: WorkflowRef, timeout: float | None = None) -> Workflow:
        """See ``Workflows.wait``."""
        return await self._run(calls.wait(workflow, timeout))

    async def step(self, workflow: WorkflowRef, step: int | str) -> WorkflowStep:
        """See ``Workflows.step``."""
        return await self._run(calls.step(workflow, step))

    async def trace(self, workflow: WorkflowRef) -> Trace:
        """See ``Workflows.trace``."""
        return await self._run(calls.trace(workflow))

    async def otlp(self, workflow: WorkflowRef) -> Export:
        """See ``Workflows.otlp``."""
        return await self._run(calls.otlp(workflow))

    def list(
        self, *, name: str | None = None, status: str | None = None, nested: bool = True, limit: int | None = None
    ) -> AsyncGenerator[Workflow, None]:
        """See ``Workflows.list``."""
        return self._iterate(calls.all_pages(name=name, status=status, nested=nested, limit=limit))

    async def page(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        nested: bool = True,
        limit: int = 50,
        cursor: str | None = None,
    ) -> WorkflowPage:
        """See ``Workflows.page``."""
        return await self._run(calls.page(name=name, status=status, nested=nested, limit=limit, cursor=cursor))

    async def cancel(self, workflow: WorkflowRef) -> Workflow:
        """See ``Workflows.cancel``."""
        return await self._run(calls.verb("cancel", workflow))

    async def retry(self, workflow: WorkflowRef) -> Workflow:
        """See ``Workflows.retry``."""
        return await self._run(calls.verb("retry", workflow))

    async def pause(self, workflow: WorkflowRef) -> Workflow:
        """See ``Workflows.pause``."""
        return await self._run(calls.verb("pause", workflow))

    async def resume(self, workflow: WorkflowRef) -> Workflow:
        """See ``Workflows.resume``."""
        return await self._run(calls.verb("resume", workflow))

    async def rerun(self, workflow: WorkflowRef, from_step: str | None = None, *, input: Any = SAME) -> Workflow:
        """See ``Workflows.rerun``."""
        return await self._run(calls.rerun(workflow, from_step, {} if input is SAME else {"input": input}))

    async def delete(self, workflow: WorkflowRef) -> None:
        """See ``Workflows.delete``."""
        await self._run(calls.delete(workflow))

    def events(self, workflow: WorkflowRef) -> AsyncGenerator[Workflow, None]:
        """See ``Workflows.events``."""
        return self._iterate(calls.events(workflow))
