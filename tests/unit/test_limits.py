"""What users may write as limits of a task, and what they mean."""

from __future__ import annotations

import math
from typing import Any

import pytest

from miniflow.limits import Limits, Threshold, in_words, limits, shown


def test_one_number_warns_at_four_fifths_of_it() -> None:
    assert limits({"cpu_seconds": 50}, "limits") == Limits(cpu_seconds=Threshold(40, 50))


def test_a_pair_says_both_and_its_first_may_be_no_warning() -> None:
    found = limits({"memory": ["100MB", "200MB"], "open_files": (None, 64)}, "limits")
    assert found == Limits(memory=Threshold(100e6, 200e6), open_files=Threshold(math.inf, 64))


@pytest.mark.parametrize(
    ("given", "size"),
    [(500, 500), ("500", 500), ("2kB", 2_000), ("1 MiB", 1 << 20), ("1.5GB", 1.5e9), ("3gib", 3 << 30), ("7b", 7)],
)
def test_sizes(given: Any, size: float) -> None:
    found = limits({"memory": given}, "limits")
    assert found is not None
    assert found.memory is not None
    assert found.memory.kill == size


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ram": 1}, "'ram' is no limit; there are memory, cpu_seconds, open_files, log_bytes, result_bytes"),
        ({"memory": "much"}, "memory is a size such as"),
        ({"memory": "5 parsecs"}, "memory is a size such as"),
        ({"memory": 0}, "memory is a number above 0"),
        ({"memory": -1}, "memory is a number above 0"),
        ({"memory": True}, "memory is a number above 0"),
        ({"memory": math.inf}, "memory is a number above 0"),
        ({"cpu_seconds": "5s"}, "cpu_seconds is a number above 0"),
        ({"cpu_seconds": [1, 2, 3]}, "one number, or a pair"),
        ({"cpu_seconds": [3, 2]}, "would warn at 3, beyond the 2"),
        ("512MB", "is a dict such as"),
    ],
)
def test_what_is_no_limit_is_refused_by_name(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^limits.*{words}"):
        limits(given, "limits")


def test_none_and_what_is_one_already_stay() -> None:
    chosen = Limits(memory=Threshold(1, 2))
    assert limits(None, "limits") is None
    assert limits(chosen, "limits") is chosen


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("memory", 412_000_000, "412 MB"),
        ("memory", 1_500_000_000, "1.5 GB"),
        ("log_bytes", 999, "999 bytes"),
        ("log_bytes", 1_024, "1.02 kB"),
        ("cpu_seconds", 61.234, "61.2 s"),
        ("open_files", 70, "70"),
    ],
)
def test_quantities_in_words(name: str, value: float, words: str) -> None:
    assert in_words(name, value) == words


def test_the_api_shows_warn_and_kill() -> None:
    assert shown(limits({"open_files": [None, 5], "memory": 10}, "limits")) == {
        "memory": [8, 10],
        "open_files": [None, 5],
    }
    assert shown(None) is None
