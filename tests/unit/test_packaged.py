"""What differs where the program is packaged, as far as it shows without a package; see tests/package for the rest."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from miniflow import packaged


@pytest.fixture
def is_packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", "/tmp/unpacked", raising=False)
    monkeypatch.setattr(packaged, "_heard", {})
    launched = threading.Event()
    launched.set()
    monkeypatch.setattr(packaged, "_has_launcher", launched)


@pytest.mark.parametrize(
    ("around", "left"),
    [
        ({"LD_LIBRARY_PATH": "/tmp/unpacked"}, {}),
        ({"LD_LIBRARY_PATH": "/tmp/unpacked:/own", "LD_LIBRARY_PATH_ORIG": "/own"}, {"LD_LIBRARY_PATH": "/own"}),
        ({"LD_LIBRARY_PATH": "/own"}, {"LD_LIBRARY_PATH": "/own"}),
        ({}, {}),
    ],
)
@pytest.mark.usefixtures("is_packaged")
def test_programs_of_jobs_get_the_library_path_that_the_user_has(
    monkeypatch: pytest.MonkeyPatch, around: dict[str, str], left: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "environ", around)
    packaged.restore_environment()
    assert around == left


@pytest.mark.usefixtures("is_packaged")
def test_the_same_signal_at_once_is_an_echo_and_another_or_a_later_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(packaged.time, "monotonic", lambda: now)
    assert not packaged.is_echo(signal.SIGINT)
    assert not packaged.is_echo(signal.SIGTERM)
    now += packaged.ECHO_S[signal.SIGINT] / 2
    assert packaged.is_echo(signal.SIGINT)
    now += packaged.ECHO_S[signal.SIGINT] * 1.5
    assert not packaged.is_echo(signal.SIGINT)
    assert packaged.is_echo(signal.SIGTERM)
    now += packaged.ECHO_S[signal.SIGTERM] * 1.5
    assert not packaged.is_echo(signal.SIGTERM)


def test_where_nothing_is_packaged_each_signal_counts_and_the_environment_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    around = {"LD_LIBRARY_PATH": "/lib", "LD_LIBRARY_PATH_ORIG": "/own"}
    monkeypatch.setattr(os, "environ", around)
    packaged.restore_environment()
    assert around == {"LD_LIBRARY_PATH": "/lib", "LD_LIBRARY_PATH_ORIG": "/own"}
    assert [packaged.is_echo(signal.SIGINT) for _ in range(2)] == [False, False]
