"""``client.schedules`` of ``Client`` and of ``AsyncClient``; what both say is in ``schedule_calls.py``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any, Unpack

from miniflow import schedule_calls as calls
from miniflow.answers import Job
from miniflow.exchange import AsyncCarryOut, AsyncIterate, CarryOut, Iterate
from miniflow.schedule_answers import Backfilled, Fire, Preview, Run, Schedule, SchedulePage
from miniflow.schedule_calls import ScheduleOptions, ScheduleRef, When
from miniflow.workflow_answers import Workflow

Runs = list[Run]


class Schedules:
    """The schedules of a server: ``client.schedules``. Wherever one is meant, its name or a Schedule will do."""

    def __init__(self, run: CarryOut, iterate: Iterate) -> None:
        self._run, self._iterate = run, iterate

    def create(
        self, name: str, task: str | None = None, payload: Any = None, **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """Make one, of a task or with ``workflow=`` of a kept workflow. Refused if the name is taken, Invalid if the task would
        not take the payload, or the workflow its ``input``."""
        return self._run(calls.create(name, task, payload, options))

    def preview(
        self, name: str, task: str | None = None, payload: Any = None, **options: Unpack[ScheduleOptions]
    ) -> Preview:
        """What it would be, with its next times. Nothing is stored."""
        return self._run(calls.preview(name, task, payload, options))

    def change(
        self,
        schedule: ScheduleRef,
        *,
        task: str | None = None,
        payload: Any = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Change what is given; an option that is None is as if it had never been given. What was due before the change runs as
        it was promised."""
        given = {name: value for name, value in (("task", task), ("payload", payload)) if value is not None}
        return self._run(calls.change(schedule, {**given, **options}))

    def pause(self, schedule: ScheduleRef, reason: str | None = None) -> Schedule:
        """It fires no more until it is resumed; its jobs go on."""
        return self._run(calls.verb("pause", schedule, {"reason": reason}))

    def resume(self, schedule: ScheduleRef) -> Schedule:
        """It goes on with the next time; what lay in the pause is not made up for."""
        return self._run(calls.verb("resume", schedule))

    def run(self, schedule: ScheduleRef) -> Job | Workflow:
        """A job now, beside the timetable; or a workflow, if it starts such."""
        return self._run(calls.run_now(schedule))

    def delete(self, schedule: ScheduleRef) -> None:
        """With its history; its jobs stay."""
        self._run(calls.delete(schedule))

    def backfill(
        self, schedule: ScheduleRef, start: When, end: When | None = None, *, dry_run: bool = False
    ) -> Backfilled:
        """A job for each time from ``start`` to ``end`` (now, if left out) that has had none. With ``dry_run`` they are counted.
        Times without an offset are in the schedule's zone."""
        return self._run(calls.backfill(schedule, start, end, dry_run))

    def get(self, schedule: ScheduleRef) -> Schedule:
        """One schedule, as it is now."""
        return self._run(calls.get(schedule))

    def page(
        self,
        *,
        status: str | None = None,
        task: str | None = None,
        workflow: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> SchedulePage:
        """A page of schedules by name, and why none fires, if so."""
        return self._run(calls.page(status=status, task=task, workflow=workflow, limit=limit, cursor=cursor))

    def list(
        self,
        *,
        status: str | None = None,
        task: str | None = None,
        workflow: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Schedule]:
        """All of them, by name; the pages are fetched on the way."""
        return self._iterate(calls.all_pages(status=status, task=task, workflow=workflow, limit=limit))

    def next_runs(self, schedule: ScheduleRef, n: int = 10, *, after: When | None = None) -> Runs:
        """The next ``n`` times that it means, whether or not it fires now."""
        return self._run(calls.next_runs(schedule, n, after))

    def history(self, schedule: ScheduleRef, *, limit: int | None = None) -> Iterator[Fire]:
        """What became of its times, newest first."""
        return self._iterate(calls.history(schedule, limit))


class AsyncSchedules:
    """``Schedules`` with ``await`` and ``async for``."""

    def __init__(self, run: AsyncCarryOut, iterate: AsyncIterate) -> None:
        self._run, self._iterate = run, iterate

    async def create(
        self, name: str, task: str | None = None, payload: Any = None, **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """See ``Schedules.create``."""
        return await self._run(calls.create(name, task, payload, options))

    async def preview(
        self, name: str, task: str | None = None, payload: Any = None, **options: Unpack[ScheduleOptions]
    ) -> Preview:
        """See ``Schedules.preview``."""
        return await self._run(calls.preview(name, task, payload, options))

    async def change(
        self,
        schedule: ScheduleRef,
        *,
        task: str | None = None,
        payload: Any = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """See ``Schedules.change``."""
        given = {name: value for name, value in (("task", task), ("payload", payload)) if value is not None}
        return await self._run(calls.change(schedule, {**given, **options}))

    async def pause(self, schedule: ScheduleRef, reason: str | None = None) -> Schedule:
        """See ``Schedules.pause``."""
        return await self._run(calls.verb("pause", schedule, {"reason": reason}))

    async def resume(self, schedule: ScheduleRef) -> Schedule:
        """See ``Schedules.resume``."""
        return await self._run(calls.verb("resume", schedule))

    async def run(self, schedule: ScheduleRef) -> Job | Workflow:
        """See ``Schedules.run``."""
        return await self._run(calls.run_now(schedule))

    async def delete(self, schedule: ScheduleRef) -> None:
        """See ``Schedules.delete``."""
        await self._run(calls.delete(schedule))

    async def backfill(
        self, schedule: ScheduleRef, start: When, end: When | None = None, *, dry_run: bool = False
    ) -> Backfilled:
        """See ``Schedules.backfill``."""
        return await self._run(calls.backfill(schedule, start, end, dry_run))

    async def get(self, schedule: ScheduleRef) -> Schedule:
        """See ``Schedules.get``."""
        return await self._run(calls.get(schedule))

    async def page(
        self,
        *,
        status: str | None = None,
        task: str | None = None,
        workflow: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> SchedulePage:
        """See ``Schedules.page``."""
        return await self._run(calls.page(status=status, task=task, workflow=workflow, limit=limit, cursor=cursor))

    def list(
        self,
        *,
        status: str | None = None,
        task: str | None = None,
        workflow: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Schedule, None]:
        """See ``Schedules.list``."""
        return self._iterate(calls.all_pages(status=status, task=task, workflow=workflow, limit=limit))

    async def next_runs(self, schedule: ScheduleRef, n: int = 10, *, after: When | None = None) -> Runs:
        """See ``Schedules.next_runs``."""
        return await self._run(calls.next_runs(schedule, n, after))

    def history(self, schedule: ScheduleRef, *, limit: int | None = None) -> AsyncGenerator[Fire, None]:
        """See ``Schedules.history``."""
        return self._iterate(calls.history(schedule, limit))
