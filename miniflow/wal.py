"""The write-ahead log of the writer's connection, and what keeps it small; and the end of a process whose disk fails."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import apsw

from miniflow.db import WAL_LIMIT_BYTES

log = logging.getLogger("miniflow.writer")

EXIT_DISK = 74  # EX_IOERR of sysexits.h


def size(connection: apsw.Connection) -> int:
    """Bytes."""
    try:
        return os.stat(connection.filename_wal).st_size
    except OSError:
        return 0


def checkpoint(connection: apsw.Connection) -> None:
    """Move what is in it into the file, and make it empty.

    Done by the writer, between commits: a checkpointer beside the writer never catches up with it.
    """
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError:  # a reader in another process: next time
        if size(connection) > WAL_LIMIT_BYTES:
            log.warning(
                "the WAL has %d bytes and a reader of another process keeps it from being reset", size(connection)
            )
    except apsw.IOError as exc:
        die(f"the database cannot be checkpointed: {exc}", exc)


def die(line: str, cause: BaseException) -> NoReturn:
    """End the process at once: what was acknowledged is on the disk, and nothing more may be."""
    log.critical(line, exc_info=cause)
    print(f"miniflow: {line}", file=sys.stderr, flush=True)
    os._exit(EXIT_DISK)
