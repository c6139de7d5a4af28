"""One real server for each module of HTTP tests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api import TASKS
from tests.invariants import check_invariants
from tests.servers import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the tasks of ``tests/api.py``; its file is checked when the module is through."""
    with Server(tmp_path_factory.mktemp("server"), {"sample.py": TASKS}, stop_grace=1.0) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True, replayed=True)


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made
