"""What can be done to kept definitions of workflows: put, delete, take up those in files.

As with schedules each verb is one function that runs inside one transaction of the writer and says why it refused. The same
content put again makes no new version. A definition that stands in a file beside the tasks is changed there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from miniflow import definition_statements as sql
from miniflow.contract import check_name
from miniflow.errors import DefinitionRefused, InvalidRequest, MiniFlowError, NotFound
from miniflow.statements import META_GET, META_PUT
from miniflow.workflow_catalog import API, FILE, Catalog, Kept
from miniflow.workflow_graph import Definition, decode_definition
from miniflow.workflow_intake import WorkflowIntake
from miniflow.writer import Transaction

log = logging.getLogger("miniflow.workflows")

DEFINITIONS_MAX = 10_000
LAST_VERSION = "last version of definition "
"""What stands in the file of one that was deleted goes by this and its name."""
_encode = msgspec.json.Encoder().encode


class Declared(NamedTuple):
    """A definition that stands in a file."""

    name: str
    definition: Definition
    origin: str


class Definitions:
    def __init__(self, intake: WorkflowIntake) -> None:
        self._intake = intake
        self._in_files: dict[str, str] = {}
        """Which stand in files now, and where."""

    def __repr__(self) -> str:
        return f"<Definitions [{len(self.catalog)} kept, {len(self._in_files)} in files]>"

    @property
    def catalog(self) -> Catalog:
        return self._intake.catalog

    def load(self, tx: Transaction) -> None:
        """At start: what is kept."""
        for row in tx.run(sql.NEWEST_DEFINITIONS):
            self.catalog.put(kept_of_row(row))

    def put(self, name: str, definition: Definition) -> Callable[[Transaction], tuple[Kept, bool]]:
        """Keep it as the newest version of ``name``; answers that, and whether it is a new one. Raises as a start does."""
        check_name(name)

        def verb(tx: Transaction) -> tuple[Kept, bool]:
            if name in self._in_files:
                raise DefinitionRefused(name, "change", f"it stands in {self._in_files[name]}; change it there")
            return self._put(tx, name, definition, API, None)

        return verb

    def _put(
        self, tx: Transaction, name: str, definition: Definition, source: str, origin: str | None
    ) -> tuple[Kept, bool]:
        self._intake.check(name, definition)
        rows = tx.run(sql.NEWEST_OF_NAME, name)
        before = kept_of_row(rows[0]) if rows else None
        text = _encode(definition).decode()
        if before is not None and _encode(before.definition).decode() == text:
            if (before.source, before.origin) == (source, origin):
                return before, False
            tx.run(sql.SET_ORIGIN, name, before.version, source, origin)
            kept, new = before._replace(source=source, origin=origin), False
        else:
            if before is None and tx.run(sql.HOW_MANY_NAMES)[0][0] >= DEFINITIONS_MAX:
                raise InvalidRequest("name", f"would be one more than {DEFINITIONS_MAX:,} definitions; delete some")
            version = 1 + (_last_version(tx, name) if before is None else before.version or 0)
            kept, new = Kept(name, version, definition, source, origin, tx.now_ms), True
            tx.run(sql.INSERT_VERSION, name, version, text, source, origin, tx.now_ms)
        tx.on_commit(lambda: self.catalog.put(kept))
        return kept, new

    def delete(self, name: str) -> Callable[[Transaction], None]:
        """With all its versions; runs of it stay, and know how they were defined. Their numbers are not given again."""

        def verb(tx: Transaction) -> None:
            if name in self._in_files:
                raise DefinitionRefused(name, "delete", f"it stands in {self._in_files[name]}; delete that")
            rows = tx.run(sql.NEWEST_OF_NAME, name)
            if not rows:
                raise NotFound("definition", name)
            tx.run(sql.DELETE_DEFINITION, name)
            tx.run(META_PUT, LAST_VERSION + name, kept_of_row(rows[0]).version)
            tx.on_commit(lambda: self.catalog.remove(name))

        return verb

    def take_up(self, tx: Transaction, declared: Iterable[Declared]) -> None:
        """Make the file follow the definitions beside the tasks. One that is wrong is said, and stays as it was; one whose file
        is gone stays, and may be deleted."""
        self._in_files.clear()
        ahead = {one.name: one for one in declared}
        wrong: dict[str, MiniFlowError] = {}
        while ahead:  # those that others run as steps come first
            taken = [name for name, one in ahead.items() if self._taken_up(tx, one, wrong)]
            if not taken:
                break
            for name in taken:
                del ahead[name]
        for name, one in ahead.items():
            self._in_files[name] = one.origin
            log.warning("the workflow %s in %s was not taken up: %s", name, one.origin, wrong[name])

    def _taken_up(self, tx: Transaction, new: Declared, wrong: dict[str, MiniFlowError]) -> bool:
        try:
            check_name(new.name)
            kept, _ = self._put(tx, new.name, new.definition, FILE, new.origin)
        except MiniFlowError as exc:
            wrong[new.name] = exc
            return False
        self._in_files[new.name] = new.origin
        self.catalog.put(kept)  # now: the next one may run it
        return True


def _last_version(tx: Transaction, name: str) -> int:
    """Of one that is not kept, the last version that there was: runs may say it, and another one is not to be called so."""
    rows = tx.run(META_GET, LAST_VERSION + name)
    return int(rows[0][0]) if rows else 0


def kept_of_row(row: tuple[str, int, str, str, str | None, int]) -> Kept:
    name, version, text, source, origin, created_at = row
    return Kept(name, version, decode_definition(text), source, origin, created_at)
