"""The command ``miniflow bench``: its options, its output and its exit codes."""

from __future__ import annotations

import signal
import sys
from typing import Any, NoReturn

import rich_click as click

EXIT_FAILED = 1
"""Something that must hold did not: an assertion, or that no job is lost."""
EXIT_UNUSABLE = 2
EXIT_NO_SERVER = 4
EXIT_INTERRUPTED = 130


def _profiles(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """For the shell's completion."""
    from miniflow.bench.profiles import PROFILES

    return [name for name in PROFILES if name.startswith(begun)]


@click.command(
    epilog="Exit codes: 0 all is well; 1 an --assert does not hold, a job was lost, or jobs did not end as they must; "
    "2 wrong usage; 4 no server; 130 interrupted."
)
@click.option(
    "--profile",
    default="smoke",
    shell_complete=_profiles,
    metavar="WORD",
    help="what to do, see above [default: smoke]",
)
@click.option("--url", metavar="URL", help="a server that runs already, instead of one of its own on a fresh file")
@click.option(
    "--token", envvar="MINIFLOW_TOKEN", default="", metavar="TEXT", help="the bearer token of the server at --url"
)
@click.option(
    "--mix",
    type=click.Choice(["noop", "work"]),
    metavar="WORD",
    help="the jobs: noop (do nothing) or work (wait some ms)",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 10_000_000),
    metavar="N",
    help="how many, as fast as they are taken; of workflow: workflows",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 1_000), metavar="N", help="connections, one submit at a time on each"
)
@click.option("--workers", type=click.IntRange(1, 1_000), metavar="N", help="worker threads of the bench's own server")
@click.option(
    "--duration",
    type=click.FloatRange(0.1, 86_400),
    metavar="SECONDS",
    help="how long at a given rate (of a step, for stress)",
)
@click.option(
    "--rate", type=click.FloatRange(0.1, 100_000), metavar="R", help="submits a second (for stress: to begin with)"
)
@click.option(
    "--assert", "wanted", metavar="EXPR", help='what must hold, for scripts: "p95<50ms,lost=0,err<1%,throughput>1000/s"'
)
@click.option("--json", "as_json", is_flag=True, help="all figures as one JSON object on standard output")
@click.option("--no-calibrate", is_flag=True, help="leave out what this machine can do at all")
@click.option("--keep", is_flag=True, help="keep the folder with the database and the server's log")
@click.option("--part", hidden=True, type=click.Choice(["serve", "load", "empty-route"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="")
def bench(part: str | None, arguments: tuple[str, ...], **options: Any) -> None:
    """Measure how fast MiniFlow is here, and whether it keeps what it accepts.

    It starts a server of its own on a fresh file, sends jobs from a process of its own, waits until all have ended, and
    counts them in the file.

    \b
    Profiles:
      smoke     a few hundred jobs, some seconds: does it work, how fast roughly
      baseline  a steady rate, then 50,000 jobs as fast as they are taken
      spike     a steady rate, ten times that, then back: when has it caught up
      soak      a steady rate for --duration: do memory and file grow as expected
      stress    a rate that rises by steps until it is too much
      flaky     every 5th job fails half the time: do 12.5 % of those die
      workflow  workflows of three steps, one after the other

    \b
    Examples:
      miniflow bench
      miniflow bench --profile baseline --jobs 10000 --json
      miniflow bench --profile stress --assert "p95<500ms,err<1%,lost=0"
      miniflow bench --profile soak --duration 3600 --rate 50
      miniflow bench --profile spike --url http://127.0.0.1:8000
    """
    if part is not None:
        _be_a_part(part, arguments)
        return
    if arguments:
        raise click.UsageError(f"unexpected argument {arguments[0]!r}; options begin with --")
    sys.exit(_bench(**options))


def _be_a_part(part: str, arguments: tuple[str, ...]) -> None:
    """This process is one that a benchmark has started, see ``processes.py``."""
    if part == "load":
        from miniflow.bench import load

        load.main()
        return
    from miniflow.bench import processes

    processes.end_with_stdin()
    if part == "empty-route":
        from miniflow.bench import empty_route

        empty_route.main()
        return
    context = click.get_current_context()
    assert context is not None
    group = context.find_root().command
    assert isinstance(group, click.Group)
    group.commands["serve"].main(args=list(arguments), prog_name="miniflow serve", standalone_mode=False)


def _bench(
    *,
    profile: str,
    url: str | None,
    token: str,
    wanted: str | None,
    as_json: bool,
    no_calibrate: bool,
    keep: bool,
    **asked: Any,
) -> int:
    from miniflow.bench import assertions, profiles, report, result
    from miniflow.bench.processes import ServerGone
    from miniflow.bench.run import Bench
    from miniflow.bench.show import Show

    if url is not None:
        _check_url(url, asked)
    try:
        setup = profiles.setup(profile, **asked)
        wishes = assertions.parse(wanted) if wanted is not None else []
        available = result.measured_figures(setup, own_server=url is None, calibrate=not no_calibrate)
        assertions.check_measured(wishes, available, f"by this run of {profile}")
    except (profiles.Unusable, assertions.BadAssertion) as exc:
        _give_up(str(exc), EXIT_UNUSABLE)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has but the first
            signal.signal(getattr(signal, name), _interrupt)
    show = Show()
    made = Bench(setup, url=(url or "").rstrip("/"), token=token, calibrated=not no_calibrate, show=show)
    try:
        found = made.run()
    except profiles.Unusable as exc:
        _give_up(str(exc), EXIT_UNUSABLE)
    except ServerGone as exc:
        _give_up(str(exc), EXIT_NO_SERVER)
    except KeyboardInterrupt:
        _give_up("interrupted before anything was measured", EXIT_INTERRUPTED)
    finally:
        made.clean_up(keep=keep)  # first: the terminal may be gone, and show fail
        show.close()
        if keep:
            click.echo(f"kept: {made.folder}", err=True)
    found.verdicts = [] if found.interrupted else assertions.judge(wishes, found.figures())
    _tell(found, report.lines(found), as_json=as_json)
    return (
        EXIT_INTERRUPTED if found.interrupted else EXIT_NO_SERVER if found.gone else EXIT_FAILED if not found.ok else 0
    )


def _check_url(url: str, asked: dict[str, Any]) -> None:
    if not url.startswith("http://"):
        raise click.UsageError(
            f"--url {url}: the load generator speaks plain HTTP only; give a URL that begins with http://"
        )
    if asked["workers"] is not None:
        raise click.UsageError("--workers is of the bench's own server; the one at --url has its own")


def _tell(found: Any, lines: list[str], *, as_json: bool) -> None:
    """The result on standard output; what is wrong with it on standard error, last, so that it is seen."""
    if as_json:
        import json

        click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(lines))
        if found.verdicts:
            click.echo()
        for verdict in found.verdicts:
            if verdict.holds:
                click.secho(f"✓ {verdict}", fg="green")
    wrong = [f"✗ {verdict}" for verdict in found.verdicts if not verdict.holds] + [
        f"✗ {text}" for text in found.problems
    ]
    if found.gone:
        wrong.append(f"✗ {found.gone}")
    if found.interrupted:
        wrong.append("interrupted: this is what was measured until then")
    for text in wrong:
        click.secho(text, fg="red", err=True)


def _give_up(text: str, code: int) -> NoReturn:
    click.echo(f"miniflow: {text}", err=True)
    sys.exit(code)


def _interrupt(*_: object) -> NoReturn:
    """SIGTERM ends a benchmark as Ctrl-C does: in order, with nothing left behind."""
    raise KeyboardInterrupt
