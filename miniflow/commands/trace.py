"""``trace``: what took how long in a workflow or a job."""

from __future__ import annotations

import msgspec
import rich_click as click
from rich.text import Text

from miniflow.answers import NotFound
from miniflow.commands import completing, exits, words
from miniflow.commands.session import Session, remote
from miniflow.commands.trace_views import in_tree_order, trace_tree


@remote(exits.NOT_FOUND)
@click.argument("run_id", metavar="ID", shell_complete=completing.jobs)
@click.option("--otlp", is_flag=True, help="as the JSON of OpenTelemetry, for the /v1/traces of a collector")
def trace(session: Session, run_id: str, otlp: bool) -> None:
    """Show what took how long in a workflow, or in a job.

    ID is the id of a workflow or of a job, or the word last for the newest job. Below the run are its steps, from the moment that
    their turn came, and below these their attempts; +TIME is how long after the begin of the run. With --json one document.

    \b
    Examples:
      miniflow trace last
      miniflow trace 0198c0de-1234-7abc-8def-0123456789ab
      miniflow trace last --otlp | curl -H 'Content-Type: application/json' -d @- http://localhost:4318/v1/traces
    """
    client, wanted = session.client, session.job_id(run_id)
    try:
        found = client.workflows.otlp(wanted) if otlp else client.workflows.trace(wanted)
    except NotFound:
        found = client.otlp(wanted) if otlp else client.trace(wanted)
    if session.json or isinstance(found, dict):
        session.document(found)
        return
    shown = msgspec.structs.replace(found, spans=in_tree_order(found.spans))
    session.line(Text.assemble(("trace ", "bold"), found.trace_id, f"  {len(found.spans):,} spans"))
    session.lines(trace_tree(shown, session.width, plain=session.ascii_only))
    if found.truncated:
        session.note(words.plain(f"the trace has more than {len(found.spans):,} spans; the rest was left out"))
