"""What changed since, as followers are told: what a look costs, how often there is one, and what a quiet stream says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from miniflow import feed as feeds
from miniflow import statements as sql
from miniflow.engine import Engine
from miniflow.errors import ReadTooSlow
from miniflow.feed import Change, Feed, Place
from miniflow.readers import Readers
from tests.engines import Engines, cancel, new_job, submit, submit_all
from tests.waiting import PATIENCE

BOUND_S = 10


def noop() -> None: ...


class CountedReaders(Readers):
    """Counts the reads by statement."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.reads: Counter[str] = Counter()

    def point(self, statement: str, *parameters: Any) -> list[Any]:
        self.reads[statement] += 1
        return super().point(statement, *parameters)

    async def fetch(self, statement: str, *parameters: Any) -> list[Any]:
        self.reads[statement] += 1
        return await super().fetch(statement, *parameters)


def following(engine: Engine, body: Callable[[Feed, CountedReaders], Awaitable[None]]) -> None:
    async def run() -> None:
        readers = CountedReaders(engine.database.path)
        await readers.open()
        try:
            await asyncio.wait_for(body(Feed(readers, engine.writer), readers), BOUND_S * PATIENCE)
        finally:
            await readers.close()

    asyncio.run(run())


@pytest.fixture
def engine(engines: Engines) -> Engine:
    return engines(noop, workers=0)


def test_followers_that_have_seen_everything_share_one_look(engine: Engine) -> None:
    async def body(feed: Feed, readers: CountedReaders) -> None:
        heard: list[Change] = []
        start = feed.now()

        async def follow() -> None:
            async with aclosing(feed.follow(start)) as pages:
                async for changes in pages:
                    heard.extend(changes)
                    if len(changes) and changes[-1].job.queue == "last":
                        return

        followers = [asyncio.create_task(follow()) for _ in range(50)]
        await asyncio.to_thread(submit, engine, "noop")
        await asyncio.to_thread(submit, engine, "noop", queue="last")
        await asyncio.gather(*followers)
        assert len(heard) == 100
        assert readers.reads[sql.CHANGED_AFTER] <= 3  # the first look, and one after each commit

    following(engine, body)


def test_a_follower_looks_at_most_so_often_while_much_changes(engine: Engine) -> None:
    async def body(feed: Feed, readers: CountedReaders) -> None:
        loop = asyncio.get_running_loop()
        job_id = await asyncio.to_thread(submit, engine, "noop", queue="awaited")
        began = loop.time()
        seen: list[Place] = []

        async def follow() -> None:
            async with aclosing(feed.follow_job(job_id, None)) as news:
                seen.extend([one.place async for one in news if isinstance(one, Change)])

        follower = asyncio.create_task(follow())
        for _ in range(300):
            await asyncio.to_thread(submit, engine, "noop")
        await asyncio.to_thread(cancel, engine, job_id)
        await follower
        assert readers.reads[sql.CHANGE_OF_JOB] <= (loop.time() - began) * feeds.LOOKS_S + 3
        assert len(seen) == 2

    following(engine, body)


def test_nobody_is_called_for_when_nobody_follows(engine: Engine) -> None:
    async def body(feed: Feed, readers: CountedReaders) -> None:
        async with aclosing(feed.follow(feed.now())) as pages:
            looking = asyncio.ensure_future(anext(pages))
            await asyncio.to_thread(submit, engine, "noop")
            assert len(await looking) == 1
        before = readers.reads.total()
        await asyncio.to_thread(submit, engine, "noop")
        await asyncio.sleep(0)
        assert readers.reads.total() == before
        assert "[0 listeners]" in repr(engine.writer.changes)

    following(engine, body)


def test_a_quiet_stream_says_now_and_then_that_it_is_there(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BEAT_S", 0.02)
    job_id = submit(engine, "noop")

    async def body(feed: Feed, readers: CountedReaders) -> None:
        async with aclosing(feed.follow(feed.now())) as pages:
            assert [await anext(pages) for _ in range(2)] == [[], []]
        async with aclosing(feed.follow_job(job_id, None)) as news:
            assert isinstance(await anext(news), Change)
            assert [await anext(news) for _ in range(2)] == [None, None]

    following(engine, body)


def test_the_end_of_the_server_ends_a_stream_after_what_there_is(engine: Engine) -> None:
    async def body(feed: Feed, readers: CountedReaders) -> None:
        start = feed.now()
        job_id = await asyncio.to_thread(submit, engine, "noop")
        feed.close()
        async with aclosing(feed.follow(start)) as pages:
            assert [[change.job.id for change in changes] async for changes in pages] == [[job_id]]
        async with aclosing(feed.follow_job(job_id, None)) as news:
            assert [type(one) async for one in news] == [Change]

    following(engine, body)


def test_one_that_catches_up_keeps_no_pages_behind_it(engine: Engine) -> None:
    start = Place(0, 0)
    submit_all(engine, [new_job(engine, "noop") for _ in range(feeds.PAGE * 2 + 1)])

    async def body(feed: Feed, readers: CountedReaders) -> None:
        async with aclosing(feed.follow(start)) as pages:
            sizes = [len(await anext(pages)) for _ in range(3)]
        assert sizes == [feeds.PAGE, feeds.PAGE, 1]
        assert len(feed._pages) <= 1

    following(engine, body)


def test_a_look_that_failed_is_not_what_the_next_one_gets(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = submit(engine, "noop")

    async def fails(statement: str, *parameters: Any) -> list[Any]:
        raise ReadTooSlow(1)

    async def body(feed: Feed, readers: CountedReaders) -> None:
        start = Place(0, 0)
        async with aclosing(feed.follow(feed.now())) as other:  # no first one, who would begin with an empty table
            await anext(other)
            with monkeypatch.context() as patch:
                patch.setattr(readers, "fetch", fails)
                with pytest.raises(ReadTooSlow):
                    await anext(feed.follow(start))
            async with aclosing(feed.follow(start)) as pages:
                assert [change.job.id for change in await anext(pages)] == [job_id]

    monkeypatch.setattr(feeds, "BEAT_S", 0.02)
    following(engine, body)


def test_an_id_is_the_place_as_text() -> None:
    assert feeds.parse_place(str(Place(812, 5)), "after") == Place(812, 5)
    assert Place(9, 5) < Place(10, 1) < Place(10, 2)
