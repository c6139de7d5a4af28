"""/docs and /redoc: two pages that read the OpenAPI document to people, on a machine without internet too."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar.exceptions import ServiceUnavailableException

from miniflow.web import docs
from miniflow.web.problems import problem_of
from tests.api import assert_problem
from tests.servers import Server

PAGES = ["/docs", "/redoc"]
AT_HOME = {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}
"""Sources of a content security policy that are this server or the page itself."""
TOKEN = "a-token-of-more-than-16-characters"


def parts(page: httpx.Response) -> list[str]:
    """What a page loads: its scripts and styles."""
    return re.findall(r'<(?:script|link)[^>]* (?:src|href)="((?!data:)[^"]+)"', page.text)


def as_written(server: Server, path: str) -> int:
    """The status for a path that other clients would tidy up first."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    with closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


@pytest.mark.parametrize("path", PAGES)
def test_a_page_and_all_that_it_loads_come_from_here(client: httpx.Client, path: str) -> None:
    page = client.get(path)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert len(parts(page)) >= 3
    for part in [*parts(page), "openapi.json"]:
        assert not re.match(r"[a-z]*:?//", part)
        answer = client.get(str(page.url.join(part)))
        assert answer.status_code == 200, part
        kind = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}[Path(part).suffix]
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_forbids_itself_to_ask_anybody_else(client: httpx.Client, path: str) -> None:
    directives = [directive.split() for directive in client.get(path).headers["content-security-policy"].split("; ")]
    assert ["default-src", "'none'"] in directives
    assert ["script-src", "'self'"] in directives
    assert {source for _, *sources in directives for source in sources} <= AT_HOME


@pytest.mark.parametrize("path", [*PAGES, "/static/docs/docs.css"])
def test_what_a_browser_has_is_not_sent_again(client: httpx.Client, path: str) -> None:
    etag = client.get(path).headers["etag"]
    again = client.get(path, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)


@pytest.mark.parametrize(
    "path",
    [
        "/static/", "/static/docs", "/static/nothing.js", "/static/../docs.py", "/static/docs/../../docs.py",
        "/static/%2e%2e/docs.py", "/static/docs/%2e%2e/docs.css", "/static/docs/..%2f..%2fdocs.py", "/static//etc/passwd",
        "/static/%2fetc/passwd",
    ],
)  # fmt: skip
def test_no_other_file_can_be_had(server: Server, path: str) -> None:
    assert as_written(server, path) == 404


def test_pages_and_document_are_read_without_the_token(tmp_path: Path) -> None:
    """They are the same in each installation, and a browser's address bar cannot send it."""
    with Server(tmp_path, token=TOKEN) as server, server.client() as client:
        for path in [*PAGES, "/openapi.json", *(f"/{part}" for page in PAGES for part in parts(client.get(page)))]:
            assert client.get(path).status_code == 200, path
        for path in ["/api/v1/jobs", "/static", "/docs/x", "/metrics"]:
            assert_problem(client.get(path), 401, "no_token")
        for around in ["/static/../api/v1/jobs", "/static/%2e%2e/api/v1/jobs", "/static/..%2fapi%2fv1%2fjobs"]:
            assert as_written(server, around) == 404, around


def test_what_others_wrote_comes_with_its_licence() -> None:
    folder = docs.STATIC / "vendor"
    assert {path.name for path in folder.iterdir()} == {"redoc", "swagger-ui"}
    assert "Permission is hereby granted" in (folder / "redoc" / "LICENSE").read_text("utf-8")
    assert "Apache License" in (folder / "swagger-ui" / "LICENSE").read_text("utf-8")


def test_a_checkout_that_was_not_installed_says_what_to_do() -> None:
    nobody: Any = None
    with pytest.raises(ServiceUnavailableException, match=re.escape("`pip install -e .`")) as refused:
        asyncio.run(docs.page(nobody, "docs/docs.html", needs="vendor/nothing.js"))
    assert problem_of(refused.value)[0].status == 503


@pytest.mark.browser
@pytest.mark.parametrize("path", PAGES)
def test_a_browser_that_reaches_nobody_else_shows_the_operations(server: Server, tmp_path: Path, path: str) -> None:
    """What the policy had to stop, or a script failed at, would stand in the console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [
        str(browser), "--headless=new", "--disable-gpu", f"--user-data-dir={tmp_path}", "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr", "--virtual-time-budget=10000",
        *sandbox, "--dump-dom", f"{server.url}{path}",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "Submit many jobs, all or none" in shown.stdout
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
