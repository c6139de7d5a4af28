"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time

import pytest

from miniflow import looplag
from miniflow.looplag import LoopLag


def test_what_holds_the_loop_up_is_measured_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looplag, "TICK_S", 0.01)
    lag = LoopLag()

    async def held_up() -> None:
        lag.start(asyncio.get_running_loop())
        time.sleep(0.1)  # noqa: ASYNC251 - the loop stands still, which is what is looked for
        while not lag.max_s:  # noqa: ASYNC110 - until it was measured
            await asyncio.sleep(0.001)
        worst = lag.max_s
        while lag.last_s >= worst:  # noqa: ASYNC110 - until it is measured again
            await asyncio.sleep(0.001)
        lag.stop()

    asyncio.run(held_up())

    assert 0.05 <= lag.max_s < 5
    assert lag.last_s < lag.max_s
