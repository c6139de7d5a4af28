"""What a process uses is held against the limits of its task."""

from __future__ import annotations

from typing import cast

from miniflow.executors.tree import Tree, Usage
from miniflow.executors.watch import Meter
from miniflow.limits import Limits, Threshold


class Using:
    """A tree that uses what it is told to."""

    def __init__(self) -> None:
        self.memory = 0

    def usage(self, *, files: bool = False) -> Usage:
        return Usage(self.memory, 0.0, 0)


def test_what_is_beyond_both_in_one_look_is_warned_of_before_it_is_ended() -> None:
    tree, said = Using(), list[str]()
    meter = Meter(cast(Tree, tree), Limits(memory=Threshold(150e6, 300e6)), said.append)
    tree.memory = 100_000_000
    assert (meter.look(), said) == (None, [])
    tree.memory = 400_000_000
    over = meter.look()
    assert over == "over the task's limit memory = 300 MB: it used 400 MB"
    assert said == ["memory: 400 MB used, beyond the 150 MB from which on there is a warning; the limit is 300 MB"]
    assert meter.look() == over
    assert len(said) == 1
