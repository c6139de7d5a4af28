"""The SQL of lists that are narrowed, put together from parts of this module's own.

A statement for each shape, so that each walks its own index and stops at its limit; a list asks for few of the many that there
could be. Parameters come in the order of their question marks: bounds, then what narrows it, then the limit.
"""

from __future__ import annotations

from functools import lru_cache

from miniflow.statements import LISTED

NARROWED_BY = {
    "queue": "j.queue = ?",
    "id": "j.id = ?",
    "key": "(j.idempotency_key = ? OR (j.idempotency_key IS NULL AND j.id = ?))",
    "task": "j.task = ?",
    "tag": "EXISTS (SELECT 1 FROM json_each(j.tags) t WHERE t.value = ?)",
    "request_id": "coalesce(j.request_id, j.id) = ?",
    "worker": "j.worker_id = ?",
    "priority": "j.priority = ?",
    "state": "j.state IN (SELECT value FROM json_each(?))",
    "seq": "j.seq >= ? AND j.seq <= ?",
    "created_from": "j.created_at >= ?",
    "created_to": "j.created_at < ?",
    "error": r"(j.state <> 'completed' AND j.last_error LIKE ? ESCAPE '\')",
    "text": r"""(j.id LIKE ? ESCAPE '\' OR j.task LIKE ? ESCAPE '\' OR j.description LIKE ? ESCAPE '\'
      OR (j.state <> 'completed' AND j.last_error LIKE ? ESCAPE '\') OR j.tags LIKE ? ESCAPE '\'
      OR (octet_length(j.payload) <= 65536 AND j.payload LIKE ? ESCAPE '\'))""",
    "text_beyond_ascii": r"""(j.id LIKE ? ESCAPE '\' OR j.task LIKE ? ESCAPE '\' OR j.description LIKE ? ESCAPE '\'
      OR (j.state <> 'completed' AND j.last_error LIKE ? ESCAPE '\')
      OR j.tags LIKE ? ESCAPE '\' OR j.tags LIKE ? ESCAPE '\'
      OR (octet_length(j.payload) <= 65536 AND (j.payload LIKE ? ESCAPE '\' OR j.payload LIKE ? ESCAPE '\')))""",
}
"""What a list can be narrowed by, each with the values that it takes; ``j`` is the row that is looked at. Long payloads are not
searched: reading a thousand of them from the file takes seconds."""


@lru_cache(256)
def list_by_seq(narrowed_by: tuple[str, ...], direction: str) -> str:
    """From, to (seqs), narrowed_by…, limit."""
    return f"""
SELECT {LISTED} FROM jobs j NOT INDEXED WHERE j.seq >= ? AND j.seq <= ?{_and(narrowed_by)} ORDER BY j.seq {direction} LIMIT ?
"""


@lru_cache(256)
def list_by_state(narrowed_by: tuple[str, ...], direction: str) -> str:
    """States (JSON array), from, to (seqs), narrowed_by…, limit, limit."""
    return f"""
SELECT {LISTED} FROM jobs WHERE seq IN (
  SELECT b.seq FROM json_each(?) s CROSS JOIN jobs b ON b.seq IN (
    SELECT j.seq FROM jobs j INDEXED BY jobs_by_state
    WHERE j.state = s.value AND j.seq >= ? AND j.seq <= ?{_and(narrowed_by)} ORDER BY j.seq {direction} LIMIT ?))
ORDER BY seq {direction} LIMIT ?
"""


@lru_cache(256)
def list_by_change(narrowed_by: tuple[str, ...], direction: str) -> str:
    """From (changed, seq), to (changed, seq), narrowed_by…, limit."""
    return f"""
SELECT {LISTED} FROM jobs j INDEXED BY jobs_changed
WHERE (j.changed, j.seq) >= (?, ?) AND (j.changed, j.seq) <= (?, ?){_and(narrowed_by)}
ORDER BY j.changed {direction}, j.seq {direction} LIMIT ?
"""


# For bulk verbs: how many rows there are, and which of them are in the states that the verb applies to, as a JSON array of
# [seq, id]. A seq alone is no identity: that of the last row, deleted, goes to the next job that is submitted.


@lru_cache(256)
def find_by_seq(narrowed_by: tuple[str, ...]) -> str:
    """States that apply (JSON array), from, to (seqs), narrowed_by…"""
    return f"""
SELECT count(*), json_group_array(json_array(j.seq, j.id)) FILTER (WHERE j.state IN (SELECT value FROM json_each(?)))
FROM jobs j NOT INDEXED WHERE j.seq >= ? AND j.seq <= ?{_and(narrowed_by)}
"""


@lru_cache(256)
def find_by_state(narrowed_by: tuple[str, ...]) -> str:
    """States that apply, states to look through (JSON arrays), from, to (seqs), narrowed_by…"""
    return f"""
SELECT count(*), json_group_array(json_array(j.seq, j.id)) FILTER (WHERE j.state IN (SELECT value FROM json_each(?)))
FROM json_each(?) s CROSS JOIN jobs j INDEXED BY jobs_by_state ON j.state = s.value AND j.seq >= ? AND j.seq <= ?
WHERE true{_and(narrowed_by)}
"""


@lru_cache(256)
def still(narrowed_by: tuple[str, ...]) -> str:
    """Which of these rows (JSON array of [seq, id]) are what they were when they were found: narrowed_by… Their seqs, as a JSON
    array."""
    return f"""
SELECT json_group_array(j.seq)
FROM json_each(?) i CROSS JOIN jobs j NOT INDEXED ON j.seq = i.value ->> 0 AND j.id = i.value ->> 1
WHERE true{_and(narrowed_by)}
"""


def _and(narrowed_by: tuple[str, ...]) -> str:
    return "".join(f" AND {NARROWED_BY[name]}" for name in narrowed_by)
