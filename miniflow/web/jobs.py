"""Jobs over HTTP, many or one: lists and search, a look at one, verbs on many, and the dead letters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, delete, get, post
from litestar.params import HeaderParameter, Parameter

from miniflow import bulk, filters
from miniflow.errors import InvalidRequest, NotFound
from miniflow.explain import explain
from miniflow.filters import Filter
from miniflow.listing import PAGE_MAX
from miniflow.states import State
from miniflow.web.api import AnyRequest, Wait, find_job, respond
from miniflow.web.backend import Backend
from miniflow.web.problems import decoded

Limit = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="jobs on a page")]
Cursor = Annotated[str | None, Parameter(description="`next_cursor` of the page before")]
Status = Annotated[
    str | None,
    Parameter(
        description="one state, or several separated by commas; other systems' names (`waiting`, `failed`) are taken"
    ),
]
Tag = Annotated[str | None, Parameter(description="only jobs with this tag")]
Search = Annotated[
    str | None,
    Parameter(
        description="search: `key:value` terms (status queue task type tag id key request_id worker error priority) and text, "
        'all of which a job must have. Text is found in id, task, description, payload, error and tags; "quotes" hold it together'
    ),
]
CreatedAfter = Annotated[str | None, Parameter(description="submitted then or later (RFC 3339)")]
CreatedBefore = Annotated[str | None, Parameter(description="submitted before then (RFC 3339)")]
Sort = Annotated[
    Literal["-created_at", "created_at", "-updated_at", "updated_at"],
    Parameter(description="the order; - is newest first"),
]
Offset = Annotated[
    int,
    Parameter(
        ge=0, schema_extra={"maximum": 0}, description="0, the first page, as other systems ask for it; on by `cursor`"
    ),
]
IfNoneMatch = Annotated[
    str | None,
    HeaderParameter(name="If-None-Match", description="the ETag of an earlier answer: 304 if it is the same still"),
]

# ----------------------------------------------------------------------------------------------------------------- looking


@get("/api/v1/jobs", summary="List and search jobs")
async def list_jobs(
    backend: Backend,
    status: Status = None,
    queue: str | None = None,
    task: str | None = None,
    tag: Tag = None,
    q: Search = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    sort: Sort = "-created_at",
    limit: Limit = 50,
    cursor: Cursor = None,
    offset: Offset = 0,
) -> Response[bytes]:
    """A page of jobs. Long payloads and all results are left out; a job by its id has them.

    ``next_cursor`` leads to the next page, and is missing on the last. Where a search must walk through the jobs it looks at
    20,000 for a page: such a page may have few items, or none, and not be the last. ``total`` is there where it is counted: of
    all, of states, of a queue. By ``updated_at`` a job moves when it changes: between two pages it may come twice, or be passed
    over."""
    if offset:
        raise InvalidRequest(
            "offset", "pages are not counted; the next one is that of cursor=… with next_cursor of this"
        )
    which = filters.parse(
        status=status,
        queue=queue,
        task=task,
        tag=tag,
        q=q,
        created_after=created_after,
        created_before=created_before,
    )
    return respond(await backend.listing.page(which, limit=limit, cursor=cursor, sort=sort))


@get("/api/v1/jobs/{job_id:str}", summary="One job")
async def get_job(
    job_id: str, backend: Backend, wait: Wait = None, if_none_match: IfNoneMatch = None
) -> Response[bytes]:
    """The job as it is now; with ``wait``, as soon as it has ended, at most so many seconds later. Its ``change`` is the ETag."""
    job = await find_job(backend, job_id, wait)
    headers = {"etag": f'"{job.change}"'}
    if if_none_match is not None and _matches(if_none_match, headers["etag"]):
        return Response(b"", status_code=304, headers=headers)
    return respond(job, headers=headers)


def _matches(given: str, etag: str) -> bool:
    names = [name.strip().removeprefix("W/") for name in given.split(",")]
    return "*" in names or etag in names


@get("/api/v1/jobs/{job_id:str}/explain", summary="Why a job does not run")
async def explain_job(job_id: str, backend: Backend) -> Response[bytes]:
    """In words, asked of what decides it: why the job has not begun yet (its queue is paused, slots are taken and by whom, a rate
    frees at such a time, it waits for other jobs, it is due then, no worker serves its queue, so many are before it), or what
    ended it; and what happens next."""
    return respond(await backend.verb(explain(backend.jobs, backend.roster, backend.clock, job_id)))


@delete("/api/v1/jobs/{job_id:str}", summary="Delete a job", status_code=204)
async def delete_job(job_id: str, backend: Backend) -> None:
    """Forget a job that has ended, with its attempts and its log. 409 for one that has not: cancel it first."""
    await backend.verb(bulk.delete_one(job_id))


# --------------------------------------------------------------------------------------------------------- verbs on many


class BulkFilter(msgspec.Struct, forbid_unknown_fields=True):
    """As the parameters of a list."""

    status: str | None = None
    queue: str | None = None
    task: str | None = None
    tag: str | None = None
    q: str | None = None
    created_after: str | None = None
    created_before: str | None = None


class BulkRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which jobs: those of a filter, those with these ids, or all. One of the three."""

    filter: BulkFilter | None = None
    ids: list[str] | None = None
    all: bool = False
    dry_run: bool = False


ID_BYTES_MAX = 64  # of an id in a request, with what is around it
REST_BYTES_MAX = 65_536  # of a request without its ids

_decode_bulk = msgspec.json.Decoder(BulkRequest).decode


@post("/api/v1/jobs/bulk/cancel", summary="Cancel many jobs", status_code=200)
async def bulk_cancel(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """What waits is cancelled, what runs is asked to stop; what has ended already is counted as ``refused``, and so is what has
    changed before its turn came, so that the filter means it no more."""
    return respond(await _bulk(request, backend, bulk.CANCEL))


@post("/api/v1/jobs/bulk/retry", summary="Run many jobs again", status_code=200)
async def bulk_retry(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """Dead letters go back to their queues with their attempts counted anew, and what waits for its next attempt gets it now; all
    others are counted as ``refused``, and so is what has changed before its turn came, so that the filter means it no more."""
    return respond(await _bulk(request, backend, bulk.RETRY))


@post("/api/v1/jobs/bulk/delete", summary="Delete many jobs", status_code=200)
async def bulk_delete(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """What has ended is forgotten, with attempts and logs; what has not is counted as ``refused``, and so is what has changed
    before its turn came, so that the filter means it no more."""
    return respond(await _bulk(request, backend, bulk.DELETE))


async def _bulk(request: AnyRequest, backend: Backend, verb: bulk.BulkVerb) -> bulk.Outcome:
    body, limit = await request.body(), backend.settings.max_batch
    if len(body) > limit * ID_BYTES_MAX + REST_BYTES_MAX:  # before it is decoded: a million ids would hold the loop
        raise InvalidRequest(
            "ids", f"make a request of {len(body):,} bytes, the limit max_batch is {limit:,} ids; send them in parts"
        )
    wanted = decoded(_decode_bulk, body)
    if (wanted.filter is not None) + (wanted.ids is not None) + wanted.all != 1:
        raise InvalidRequest("filter", 'say which jobs are meant, by one of filter, ids and "all": true')
    if wanted.ids is not None:
        if len(wanted.ids) > limit:
            raise InvalidRequest(
                "ids", f"has {len(wanted.ids):,} ids, the limit max_batch is {limit:,}; send them in parts"
            )
        found = backend.listing.find_ids(wanted.ids, verb.applies)
    else:
        found = backend.listing.find(_parse(wanted.filter) if wanted.filter is not None else Filter(), verb.applies)
    return await bulk.run(verb, backend.jobs, backend.verb, found, dry_run=wanted.dry_run)


def _parse(wanted: BulkFilter) -> Filter:
    """The filter of a bulk verb. What is empty says nothing in the address of a list; here it would mean far too much."""
    given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    if not given:
        raise InvalidRequest("filter", 'is empty; name what the jobs have in common, or say "all": true for every job')
    for name, value in given.items():
        if not value.strip():
            raise InvalidRequest(f"filter.{name}", "is empty; leave it out, or say what it is")
    try:
        which = filters.parse(**given)
    except InvalidRequest as exc:
        raise InvalidRequest(f"filter.{exc.field}", exc.reason) from None
    if which.means_all:  # whatever way was found to say nothing
        raise InvalidRequest("filter", 'narrows nothing; say "all": true if every job is meant')
    return which


# ----------------------------------------------------------------------------------------------------------- dead letters


class ReplayFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters to replay; without any field, all."""

    queue: str | None = None
    task: str | None = None


_decode_replay = msgspec.json.Decoder(ReplayFilter).decode


@get("/api/v1/dead-letters", summary="List the jobs that failed for good")
async def list_dead_letters(
    backend: Backend, queue: str | None = None, task: str | None = None, limit: Limit = 50, cursor: Cursor = None
) -> Response[bytes]:
    """A page of them, newest first; as ``/api/v1/jobs?status=dead_letter``."""
    which = filters.parse(status=State.DEAD_LETTER, queue=queue, task=task)
    return respond(await backend.listing.page(which, limit=limit, cursor=cursor))


@post("/api/v1/dead-letters/replay", summary="Replay dead letters", status_code=200)
async def replay_dead_letters(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """All of them, or those of one queue or task. Says how many went back to their queues."""
    wanted = decoded(_decode_replay, await request.body() or b"{}")
    if wanted.queue is not None and wanted.task is not None:
        raise InvalidRequest("task", "cannot be given together with queue; give one of the two")
    for field, value in (("queue", wanted.queue), ("task", wanted.task)):
        if value is not None and not value.strip():  # of a list it says nothing; here it would mean all
            raise InvalidRequest(field, "is empty; leave it out, or say what it is")
    return respond({"replayed": await replay(backend, queue=wanted.queue, task=wanted.task)})


async def replay(backend: Backend, *, queue: str | None = None, task: str | None = None, at_most: int = 1 << 62) -> int:
    """Replay dead letters, oldest first; how many."""
    which = filters.parse(status=State.DEAD_LETTER, queue=queue, task=task)
    found = backend.listing.find(which, bulk.RETRY.applies)
    return (await bulk.run(bulk.RETRY, backend.jobs, backend.verb, found, at_most=at_most)).done


@post("/api/v1/dead-letters/{job_id:str}/replay", summary="Replay one dead letter", status_code=200)
async def replay_dead_letter(job_id: str, backend: Backend) -> Response[bytes]:
    """Back to its queue, its attempts counted anew. 404 if it is none."""
    job = backend.queries.job(job_id)
    if job.status != State.DEAD_LETTER:
        raise NotFound("dead letter", job_id)
    await backend.verb(backend.jobs.retry(job_id))
    return respond(backend.queries.job(job_id))


ROUTES: list[Any] = [
    list_jobs,
    get_job,
    explain_job,
    delete_job,
    bulk_cancel,
    bulk_retry,
    bulk_delete,
    list_dead_letters,
    replay_dead_letters,
    replay_dead_letter,
]
