"""A benchmark's result as text for a terminal of 80 columns: the seed's lines first, then what they leave out."""

from __future__ import annotations

import re
import textwrap

from miniflow.bench.result import PhaseResult, Result

WIDTH = 80
DASH = "–"
HARD_SPACE = "\xa0"
"""Between a number and its unit no line is broken."""


def lines(result: Result) -> list[str]:
    found = [*_heading(result), ""]
    if not any(one.outcome.sent for one in result.phases):
        return [*found, "Nothing was measured."]
    found += [*_results(result), "", *_latency_table(result), "", *_jobs(result)]
    if result.server is not None:
        found += ["", *_server(result)]
    if result.calibration is not None:
        found += ["", *_calibration(result)]
    if result.notes or result.url:
        found += ["", *_notes(result)]
    return [line.rstrip() for line in found]


def _heading(result: Result) -> list[str]:
    setup = result.setup
    where = (
        f"the server at {result.url}"
        if result.url
        else f"its own, {setup.workers} workers, a fresh file, every commit synced"
    )
    filesystem = f", {result.server.filesystem}" if result.server and result.server.filesystem else ""
    return [
        f"MiniFlow {result.version} bench, profile {setup.profile}: {result.machine}{filesystem}",
        *_wrapped("Jobs:   ", f"{setup.mix.name} ({setup.mix.says})"),
        *_wrapped("Server: ", where),
    ]


def _results(result: Result) -> list[str]:
    main = result.main
    sums = result.sums(main)
    seconds = sum(one.outcome.seconds for one in main)
    latency = sum((one.outcome.latency for one in main[1:]), main[0].outcome.latency)
    return [
        f"=== Results: {_what(main)} ===",
        f"Duration:    {seconds:.3f} s",
        f"Success:     {sums['accepted']}",
        f"Failed:      {sums['failed']}",
        f"Retries:     {sums['repeats']}",
        f"Throughput:  {(result.submitted or 0) * 60:.0f} {_units(result)}/min accepted",
        f"Avg Latency: {_ms(latency.mean_ms)} ms a submit",
    ]


def _units(result: Result) -> str:
    return "workflows" if result.setup.mix.workflow else "jobs"


def _what(main: list[PhaseResult]) -> str:
    first = main[0]
    if len(main) > 1:
        return "open loop, all phases together"
    if first.is_open:
        return f"{first.phase.name}, open loop, {first.phase.rate:,.0f}/s"
    return f"{first.phase.name}, closed loop, {first.outcome.connections} connections"


# ------------------------------------------------------------------------------------------------------------ the latencies


def _latency_table(result: Result) -> list[str]:
    rows = [
        f"{'':<20}{'latency of a submit, ms':^32}{'wait, ms':^18}{'jobs':>8}",
        f"{'phase':<20}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}{'p50':>9}{'p95':>9}{'left':>8}",
    ]
    for one in result.phases:
        latency = one.outcome.latency
        load = f"{one.phase.rate:,.0f}/s" if one.phase.rate is not None else f"{one.outcome.connections} conn."
        cells = [_ms(latency.percentile_ms(percent)) for percent in (50, 95, 99)] + [_ms(latency.max_ms)]
        waits = [_ms(one.wait.percentile_ms(percent)) for percent in (50, 95)]
        rows.append(
            f"{one.phase.name:<9}{load:>11}"
            + "".join(f"{cell:>8}" for cell in cells)
            + "".join(f"{cell:>9}" for cell in waits)
            + f"{one.left:>8,}"
        )
    kinds = {one.is_open for one in result.phases}
    if True in kinds:
        rows += _wrapped("/s     ", "open loop: a latency counts from the moment the submit was due" + _late(result))
    if False in kinds:
        rows += _wrapped("conn.  ", "closed loop: from the moment it was sent (service time)")
    rows += _wrapped("wait   ", "from accepted to begun; left: not ended when the load was over")
    return rows


def _late(result: Result) -> str:
    late = [one.outcome.late.percentile_ms(99) or 0.0 for one in result.timed if one.is_open]
    return f" (it was sent {_ms(max(late))} ms later at p99: timer, or no free connection)" if late else ""


# ---------------------------------------------------------------------------------------------------------------- the jobs


def _jobs(result: Result) -> list[str]:
    sums = result.sums()
    found = [f"{'accepted':<12}{_rate(result.throughput)}" + (" (as asked)" if result.as_asked else "")]
    if result.processed is not None:
        found.append(f"{'processed':<12}{_rate(result.processed)}{_of_the_possible(result)}")
        found.append(f"{'terminal':<12}all jobs had ended {_s(result.terminal_s)} s after the first submit")
    else:
        found.append(f"{'processed':<12}not known: the end of all jobs was not reached")
    failures = ", ".join(f"{n:,} × {kind}" for kind, n in result.failures().items())
    if failures:
        found.append(f"{'failures':<12}{failures} of {sums['sent']:,} submits")
    states = ", ".join(f"{n:,} {state}" for state, n in sorted(result.states.items()))
    found.append(f"{'in the file' if result.server else 'there are':<12}{states or 'no jobs'}")
    found.append(f"{'lost':<12}{result.lost:,} of {result.jobs_accepted:,} accepted")
    if result.failed_attempts:
        found.append(f"{'attempts':<12}{result.failed_attempts:,} failed")
    return [line for text in found for line in _wrapped(text[:12], text[12:])] + _by_profile(result)


def _by_profile(result: Result) -> list[str]:
    found = []
    if result.flaky is not None:
        flaky = result.flaky
        verdict = "within" if flaky.plausible else "NOT within"
        text = (
            f"{flaky.found:,} dead letters of {flaky.n:,} flaky jobs, expected {flaky.expected:,.1f} ± {flaky.sigma:.1f}"
            f" (12.5 %); {flaky.sigmas:+.2f} σ, {verdict} 3 σ"
        )
        found += _wrapped(f"{'flaky':<12}", text)
    if result.setup.mix.workflow:
        figures, whole = result.figures(), result.whole
        times = ", ".join(f"{_ms(whole.percentile_ms(percent))} ms at p{percent}" for percent in (50, 95, 99))
        text = f"{figures['workflows'] or 0:,.0f}/s to their end; from accepted to the end of the last step {times}"
        found += _wrapped(f"{'workflows':<12}", text)
    if result.setup.profile == "spike":
        text = (
            "not seen"
            if result.recovery_s is None
            else f"{_s(result.recovery_s)} s after its end the backlog was as before"
        )
        found += _wrapped(f"{'recovery':<12}", text)
    if result.setup.profile == "stress" and result.phases:
        rate = "none" if result.sustained is None else f"{result.sustained:,.0f} jobs/s"
        found += _wrapped(f"{'sustained':<12}", rate + (f"; then {result.too_much}" if result.too_much else ""))
    return found


def _of_the_possible(result: Result) -> str:
    """What tasks that wait leave possible at all."""
    wait = result.setup.mix.mean_wait_ms
    if not wait or result.url or result.as_asked:
        return ""
    ceiling = result.setup.workers * 1000 / wait
    return f" (at most {ceiling:,.0f}: {result.setup.workers} workers, tasks wait {wait:.1f} ms)"


# -------------------------------------------------------------------------------------------------------------- the server


def _server(result: Result) -> list[str]:
    server = result.server
    assert server is not None
    growth = ""
    if result.setup.profile == "soak" and server.memory_growth is not None:
        growth = f", {server.memory_growth:+,.1f} MB/h once warm"
    per_job = f", {server.file * 1e6 / result.found:,.0f} bytes a job" if result.found else ""
    return [
        f"{'memory':<12}{server.memory_max:,.0f} MB at most, {server.memory_begin:,.0f} MB at the start{growth}",
        f"{'processor':<12}{server.cpu_s:,.1f} s, {server.cpu_share:,.0f} % of a core",
        f"{'file':<12}{server.file:,.1f} MB{per_job}; write-ahead log {server.wal_max:,.1f} MB at most",
    ]


def _calibration(result: Result) -> list[str]:
    calibration = result.calibration
    assert calibration is not None
    ratios = result.ratios()

    def row(what: str, figure: str, ratio: str, of: str) -> str:
        share = ratios.get(ratio)
        return f"{what:<24}{figure:>18}" + (f"   {of} is {share / 100:.2f} of it" if share is not None else "")

    return [
        "Calibration, on this machine just now",
        row("empty ASGI route", f"{calibration.empty_route_per_s:,.0f} requests/s", "of_empty_route", "accepted"),
        row("raw bulk insert", f"{calibration.bulk_insert_per_s:,.0f} rows/s", "of_bulk_insert", "accepted"),
        row(
            "raw claim and complete",
            f"{calibration.claim_and_complete_per_s:,.0f} jobs/s",
            "of_raw_claims",
            "processed",
        ),
        row("one durable commit", f"{calibration.commit_ms:.2f} ms", "", ""),
    ]


def _notes(result: Result) -> list[str]:
    notes = list(result.notes)
    if result.url:
        notes.append(
            "with --url, memory, processor, file size and calibration cannot be measured; the wait is that of a sample"
        )
    return [line for note in notes for line in _wrapped("Note: ", note)]


# -------------------------------------------------------------------------------------------------------------- the numbers


def _wrapped(label: str, text: str) -> list[str]:
    found = textwrap.wrap(
        re.sub(r"(?<=\d) (?=[%σ])", HARD_SPACE, text),
        WIDTH,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace(HARD_SPACE, " ") for line in found]


def _ms(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _s(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def _rate(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f} jobs/s"
