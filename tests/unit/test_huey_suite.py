"""huey's own test suite, which its distribution carries, run against MiniFlow's huey on a file of its own for each test.

The settings are those for an application that moves over: what is no JSON is pickled and sealed, and a delayed task goes through
a worker. What then still differs is named below, test by test, with the reason; all else has to pass.
"""

from __future__ import annotations

import importlib
import os
import shutil
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

os.environ["HUEY_SLOW_TESTS"] = "1"  # before the import: a decorator looks at it

from miniflow.huey_embedded import MiniFlowHuey
from tests.invariants import check_invariants

MODULES = ("api", "asyncio", "consumer", "immediate", "priority", "registry", "serializer", "signals", "storage")
STORAGES = {"TestMemoryStorage"}
"""Of test_storage only this class: the others are for Redis, Postgres and files of huey's own."""

TESTS = 198

IN_MILLISECONDS = (
    "the file has milliseconds; these compare microseconds, which came from there, with those that went in"
)
DIFFERENT = {
    "TestQueue.test_expires": IN_MILLISECONDS,
    "TestQueue.test_reschedule_expires": IN_MILLISECONDS,
    "TestQueue.test_retrytask_eta_delay": IN_MILLISECONDS,
    "TestChordPrimitive.test_chord_bookkeeping_cleared": "looks into MemoryStorage's dict of counts; nothing is counted here",
}
"""Tests that must fail, each with the reason."""


class SuiteHuey(MiniFlowHuey):
    """In place of the MemoryHuey that the suite makes."""

    template: ClassVar[Path]
    """An empty database, made once: to make one anew for each test takes longer than the tests."""
    folder: ClassVar[Path]
    made: ClassVar[list[SuiteHuey]] = []

    def __init__(self, name: str = "huey", **options: Any) -> None:
        options = {"serializer": "auto", "delayed_by_worker": True, "durability": "normal", **options}
        path = self.folder / f"{name}-{len(self.made)}.db"
        shutil.copyfile(self.template, path)
        super().__init__(name, filename=str(path), **options)
        self.made.append(self)


def classes() -> Iterator[type[unittest.TestCase]]:
    for name in MODULES:
        module = importlib.import_module(f"huey.tests.test_{name}")
        for found in vars(module).values():
            if (
                isinstance(found, type)
                and issubclass(found, unittest.TestCase)
                and found.__module__ == module.__name__
                and (name != "storage" or found.__name__ in STORAGES)
            ):
                yield found


SUITE = {found.__name__: found for found in classes()}
for different, reason in DIFFERENT.items():
    class_name, _, test_name = different.partition(".")
    marked = pytest.mark.xfail(strict=True, reason=reason, raises=(AssertionError, AttributeError))
    setattr(SUITE[class_name], test_name, marked(getattr(SUITE[class_name], test_name)))
globals().update(SUITE)


def test_the_suite_is_the_one_that_was_looked_at() -> None:
    """Another version of huey may bring other tests: then the list above is to be looked through again."""
    loaded = [unittest.defaultTestLoader.getTestCaseNames(found) for found in SUITE.values()]
    assert sum(map(len, loaded)) == TESTS


@pytest.fixture(autouse=True, scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    SuiteHuey.template = tmp_path_factory.mktemp("template") / "empty.db"
    empty = MiniFlowHuey("template", filename=str(SuiteHuey.template))
    empty.open()
    empty.close()


@pytest.fixture(autouse=True)
def own_hueys(template: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The suite's MemoryHuey is ours, for one test; at its end each file is closed and looked at."""
    SuiteHuey.folder, SuiteHuey.made = tmp_path, []
    for name in ("base", *(f"test_{name}" for name in MODULES)):
        module = importlib.import_module(f"huey.tests.{name}")
        if hasattr(module, "MemoryHuey"):
            monkeypatch.setattr(module, "MemoryHuey", SuiteHuey)
    yield
    for huey in SuiteHuey.made:
        huey.close()
    for path in tmp_path.glob("*.db"):
        check_invariants(path, stopped=True, replayed=True, deleted=True)
