"""The README says what the code says: settings, states, commands. Its examples are run in tests/http/test_readme_examples.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from miniflow import states
from miniflow.cli import EXIT_UNUSABLE, cli
from miniflow.commands.exits import MEANING
from miniflow.settings import SETTINGS
from miniflow.states import State
from miniflow.wal import EXIT_DISK

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def section(title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = re.search(rf"^(#+) {re.escape(title)}$", README, re.MULTILINE)
    assert level is not None, f"README.md has no heading {title!r}"
    rest = README[level.end() :]
    end = re.search(rf"^#{{1,{len(level[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(text: str) -> list[list[str]]:
    """The rows of the first table in ``text``, without its head."""
    found = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()[2:]]


def as_typed(value: object) -> str:
    if value == "":
        return "empty"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


@pytest.mark.parametrize("marker", ["run-command", "test-command"])
def test_the_marked_commands_are_there(marker: str) -> None:
    """``.ci/run`` executes the block right below each marker, so there is one, and it is a command."""
    found = re.findall(rf"^<!-- {marker} -->\n```bash\n(.+?)\n```$", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    assert found[0].startswith("pip install -c constraints.txt ")


def test_settings_are_documented_as_they_are() -> None:
    expected = [[f"`{setting.name}`", as_typed(setting.default), setting.help] for setting in SETTINGS]
    assert expected == table(section("Settings"))


def test_states_are_explained_and_drawn_as_they_are() -> None:
    text = section("States")
    assert table(text) == [[f"`{state}`", states.MEANING[state]] for state in State]
    assert f"```mermaid\n{states.diagram()}\n```" in text


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_each_command_is_mentioned(command: str) -> None:
    assert f"`miniflow {command}" in section("Commands and exit codes")


def test_exit_codes_are_those_of_the_code() -> None:
    codes = {row[0] for row in table(section("Commands and exit codes"))}
    assert {str(code) for code in (*MEANING, EXIT_UNUSABLE, EXIT_DISK)} == codes


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_files_that_are_named_exist() -> None:
    written_by_the_reader = {"tasks/greet.py", *re.findall(r"^```python\n# (\S+)$", README, re.MULTILINE)}
    for name in re.findall(r"\b(?:tests|miniflow|tasks)/[\w/]+\.py\b", README):
        assert name in written_by_the_reader or (ROOT / name).exists(), name
