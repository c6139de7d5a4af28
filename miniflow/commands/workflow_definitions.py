"""Workflows that are kept under a name: ``miniflow workflow define|definitions|undefine``, and how a file with one is read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from miniflow.commands import exits, words
from miniflow.commands.exits import Complaint
from miniflow.commands.session import Session, remote
from miniflow.commands.tables import Column, table
from miniflow.commands.values import json_of, read_text

if TYPE_CHECKING:
    from miniflow.workflow_answers import WorkflowDefinition

EXAMPLE = '{"name": "report", "steps": [{"name": "load", "task": "noop"}]}'


def read_definition(file: str) -> dict[str, Any]:
    """What stands in a file: JSON, or TOML or YAML by its name."""
    text = read_text(file)
    if file.endswith((".yaml", ".yml")):
        return _of_yaml(text, file)
    if not file.endswith(".toml"):
        return _object(text, file)
    try:
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as exc:
        raise Complaint(f"{file}: not TOML: {exc}") from None
    return found


def _of_yaml(text: str, file: str) -> dict[str, Any]:
    from miniflow.yaml_text import BadYaml, read_yaml

    try:
        found = read_yaml(text)
    except BadYaml as exc:
        raise Complaint(f"{file}: not YAML that JSON can say: {exc}") from None
    if not isinstance(found, dict):
        raise Complaint(f"{file}: not a mapping; it has a name and steps, as in {EXAMPLE}")
    return found


def _object(text: str, where: str) -> dict[str, Any]:
    found = json_of(text, where)
    if not isinstance(found, dict):
        raise Complaint(f"{where}: not a JSON object; it looks like {EXAMPLE}")
    return found


@remote()
@click.argument("file")
@click.option("--name", metavar="TEXT", help="the name; else that in FILE, or its own")
def define(session: Session, file: str, name: str | None) -> None:
    """Keep a workflow under a name, to be started by it.

    FILE is JSON, TOML or YAML with steps, and what else PUT /api/v1/workflow-definitions/NAME takes. A change makes a new
    version.

    \b
    Examples:
      miniflow workflow define nightly.toml
      miniflow workflow start nightly --input '{"day": "monday"}'
    """
    wanted = read_definition(file)
    called = name or wanted.pop("name", None) or Path(file).stem
    wanted.pop("name", None)
    steps = wanted.pop("steps", None)
    if not isinstance(steps, list) or not isinstance(called, str):
        raise Complaint(f"{file}: steps are needed, as in {EXAMPLE}")
    _show_definition(session, session.client.workflows.define(called, steps, **wanted))


def _show_definition(session: Session, found: WorkflowDefinition) -> None:
    if session.json:
        session.document(found)
    else:
        steps = words.count(found.total_steps, "step")
        session.line(f"{words.plain(found.name)}  version {found.version}  {steps}")


@remote(exits.NOT_FOUND)
@click.argument("name", required=False)
@click.option("--version", type=click.IntRange(1), metavar="N", help="print this version of NAME, as JSON")
def definitions(session: Session, name: str | None, version: int | None) -> None:
    """List the workflows that are kept, or the versions of one.

    \b
    Examples:
      miniflow workflow definitions
      miniflow workflow definitions nightly
      miniflow workflow definitions nightly --version 2
    """
    if version is not None:
        if name is None:
            raise Complaint("--version is of one definition; name it")
        one = session.client.workflows.definition(name, version)
        session.line(msgspec.json.format(msgspec.json.encode(one), indent=2).decode())
        return
    found = session.client.workflows.definitions(name)
    if session.json:
        for one in found:
            session.document(one)
        return
    columns = (
        Column("NAME", 8),
        Column("VERSION", right=True),
        Column("STEPS", right=True),
        Column("INPUT", 8, rank=2),
        Column("CHANGED", rank=1),
        Column("DEFINED", 8, rank=3),
    )
    now = words.now()
    rows = [(words.plain(one.name), str(one.version), str(one.total_steps), ", ".join(one.inputs or ()),
             words.ago(one.created_at, now), words.plain(one.origin or "over the API")) for one in found]  # fmt: skip
    if rows:
        session.lines(table(columns, rows, session.width))
    else:
        session.note("no definitions")


@remote(exits.NOT_FOUND)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def undefine(session: Session, names: tuple[str, ...]) -> None:
    """Delete definitions, with all their versions.

    Their runs stay. One that stands in a file beside the tasks is deleted there.

    \b
    Example:
      miniflow workflow undefine nightly
    """
    for name in names:
        session.client.workflows.undefine(name)
        if session.json:
            session.document({"name": name, "deleted": True})
        else:
            session.line(f"{words.plain(name)}  deleted")
