"""Thousands of short jobs that are handed to children ahead, among them all that can go wrong, cancels and pauses: see
tests/handed.py for what each is held to."""

from __future__ import annotations

from pathlib import Path

import pytest

from miniflow.executors import turns
from tests import handed

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not turns.POSSIBLE, reason="nothing is handed ahead here"),
]

OFTEN = {"raw": 0.1, "says": 0.1, "raises": 0.1, "slow": 0.02, "submits": 0.1, "argues": 0.05}
SELDOM = {"raw": 0.003, "exits": 0.003, "leaves": 0.003, "hangs": 0.001, "slow": 0.003, "submits": 0.02}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [OFTEN, SELDOM], ids=["often", "seldom"])
def test_each_keeps_what_is_its_own(tmp_path: Path, seed: int, kinds: dict[str, float]) -> None:
    handed.stress(tmp_path, 3_000, seed, kinds, meddle=True)
