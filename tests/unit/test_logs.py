"""The program's own log: where it goes, that it does not grow for ever, and what is kept out of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import pytest
import structlog

from miniflow import context, logs
from miniflow.errors import SettingsError

NAMES = ("", "huey", "uvicorn", "watchfiles", "miniflow", "miniflow.task", "tests.of.logs")


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """What a set-up does to the process is undone."""
    kept = [(log, log.level, log.handlers[:], log.filters[:]) for log in map(logging.getLogger, NAMES)]
    yield
    for log, level, handlers, filters in kept:
        for handler in log.handlers[:]:
            if handler not in handlers:
                log.removeHandler(handler)
                handler.close()
        log.setLevel(level)
        log.handlers[:], log.filters[:] = handlers, filters
    structlog.reset_defaults()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def text(folder: Path) -> str:
    return (folder / "app.log").read_text("utf-8")


def file_handler() -> RotatingFileHandler:
    (handler,) = (handler for handler in logging.getLogger().handlers if isinstance(handler, RotatingFileHandler))
    return handler


def test_the_folder_is_made_and_lines_carry_time_level_and_name(folder: Path) -> None:
    logs.set_up(str(folder / "deep"), "info")
    logging.getLogger("miniflow.test").info("naïve – %s", "argument")

    line = text(folder / "deep")
    assert re.fullmatch(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] INFO miniflow\.test: naïve – argument\n", line)


def test_a_folder_that_is_there_is_used_and_its_log_goes_on(folder: Path) -> None:
    folder.mkdir()
    (folder / "app.log").write_text("yesterday\n")
    logs.set_up(str(folder), "info")
    logging.getLogger("miniflow").info("today")

    assert text(folder).startswith("yesterday\n")
    assert "today" in text(folder)


@pytest.mark.parametrize(
    ("level", "seen"),
    [("debug", "DIWE"), ("info", "IWE"), ("warning", "WE"), ("error", "E")],
)
def test_the_level_says_how_much_is_written(folder: Path, level: str, seen: str) -> None:
    logs.set_up(str(folder), level)
    log = logging.getLogger("miniflow.test")
    for number, letter in [(10, "D"), (20, "I"), (30, "W"), (40, "E")]:
        log.log(number, letter)

    assert "".join(line[-1] for line in text(folder).splitlines()) == seen


def test_the_console_shows_warnings_and_nothing_less(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(str(folder), "debug")
    logging.getLogger("miniflow").info("all is well")
    logging.getLogger("miniflow").warning("all is not well")

    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith("WARNING miniflow: all is not well\n")


def test_the_log_is_rotated_at_its_size_and_old_ones_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES_MAX", 1_000)
    logs.set_up(str(folder), "info")
    for number in range(200):
        logging.getLogger("miniflow").info("line %d", number)

    names = sorted(file.name for file in folder.iterdir())
    assert names == ["app.log", *(f"app.log.{n}" for n in range(1, logs.FILES_KEPT + 1))]
    assert all(file.stat().st_size <= 1_000 for file in folder.iterdir())
    kept = [line for name in sorted(names, reverse=True) for line in (folder / name).read_text().splitlines()]
    assert [int(line.split()[-1]) for line in kept] == list(range(200 - len(kept), 200)), "no line is lost in between"


def test_the_size_is_that_of_the_file_and_not_of_its_characters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES_MAX", 1_000)
    logs.set_up(str(folder), "info")
    for _ in range(20):
        logging.getLogger("miniflow").info("… %s", "€" * 100)

    assert len(list(folder.iterdir())) == 1 + logs.FILES_KEPT
    assert all(file.stat().st_size <= 1_000 for file in folder.iterdir())


def test_a_line_over_the_size_is_written_and_has_a_file_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES_MAX", 1_000)
    logs.set_up(str(folder), "info")
    logging.getLogger("miniflow").info("x" * 2_000)
    logging.getLogger("miniflow").info("short")

    assert text(folder).endswith("short\n")
    assert "x" * 2_000 in (folder / "app.log.1").read_text("utf-8")
    assert not (folder / "app.log.2").exists(), "an empty file is none to keep"


def test_all_logs_together_have_a_limit(folder: Path) -> None:
    logs.set_up(str(folder), "info")
    handler = file_handler()

    assert (handler.maxBytes, handler.backupCount) == (logs.FILE_BYTES_MAX, logs.FILES_KEPT)
    assert handler.maxBytes * (handler.backupCount + 1) <= 20_000_000


# ------------------------------------------------------------------------------------------------- where it cannot be


def refusal(folder: Path) -> str:
    before = logging.getLogger().handlers[:]
    with pytest.raises(SettingsError) as caught:
        logs.set_up(str(folder), "info")
    assert logging.getLogger().handlers == before, "a refusal changes nothing"
    line = str(caught.value)
    assert str(folder) in line
    assert "--log-dir" in line
    assert "None" not in line
    assert "\n" not in line
    return line


def test_a_file_in_the_folders_place_is_a_settings_error(folder: Path) -> None:
    folder.write_text("not a folder")
    refusal(folder)


def test_a_file_on_the_way_to_the_folder_is_a_settings_error(folder: Path) -> None:
    folder.write_text("not a folder")
    refusal(folder / "below")


def test_a_folder_in_the_logs_place_is_a_settings_error(folder: Path) -> None:
    (folder / "app.log").mkdir(parents=True)
    assert "Is a directory" in refusal(folder)


def test_a_folder_that_refuses_is_a_settings_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "Permission denied" in refusal(folder)


# --------------------------------------------------------------------------------------------------- what is kept out


@pytest.mark.parametrize(
    "message",
    [
        "Unhandled exception in task %s.",
        "Task %s raised CancelExecution (aborted, will not be retried).",
        "Task %s was revoked, not executing",
        "Task %s timed out after 3s.",
    ],
)
def test_a_tasks_failure_is_not_told_again_by_huey(folder: Path, message: str) -> None:
    """The job's own history has it, with its traceback."""
    logs.set_up(str(folder), "debug")
    logging.getLogger("huey").error(message, "id-1")

    assert text(folder) == ""


@pytest.mark.parametrize(
    "message", ["Unhandled exception calling pre-execute hook %s", "Unable to deserialize %s", "%s did not finish."]
)
def test_what_else_huey_complains_of_is_written(folder: Path, message: str) -> None:
    logs.set_up(str(folder), "info")
    logging.getLogger("huey").error(message, "it")

    assert message % "it" in text(folder)


def test_the_root_lets_pass_what_jobs_log_whatever_the_level(folder: Path) -> None:
    """``app.log`` has its own level; the log of a job has INFO at least."""
    logs.set_up(str(folder), "error")

    assert logging.getLogger("anybody").isEnabledFor(logging.INFO)
    assert logging.getLogger("miniflow.task").isEnabledFor(logging.INFO)
    assert not logging.getLogger("miniflow.writer").isEnabledFor(logging.WARNING)
    logging.getLogger("anybody").warning("not written")
    assert text(folder) == ""


# --------------------------------------------------------------------------------------------------------------- as JSON


def objects(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text(folder).splitlines()]


def test_as_json_each_line_is_one_object(folder: Path) -> None:
    logs.set_up(str(folder), "info", "json")
    log = logging.getLogger("tests.of.logs")
    log.info("two\nlines, %s", "naïve 🙂 \ud800")
    try:
        raise ValueError("expected")
    except ValueError:
        log.exception("failed")

    first, second = objects(folder)

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("ts"))
    assert first == {
        "level": "INFO",
        "logger": "tests.of.logs",
        "msg": "two\nlines, naïve 🙂 \ud800",
        "job_id": None,
        "request_id": None,
    }
    assert (second["level"], second["msg"]) == ("ERROR", "failed")
    assert second["exc"].startswith("Traceback")
    assert second["exc"].endswith("ValueError: expected")


def test_as_json_a_line_names_the_job_and_the_request_it_comes_from(folder: Path) -> None:
    logs.set_up(str(folder), "info", "json")
    log = logging.getLogger("tests.of.logs")
    with context.use(context.JobContext(job_id="job-1", request_id="req-1")):
        log.info("in a job")
    token = context.request_id.set("req-2")
    log.info("in a request")
    context.request_id.reset(token)

    assert [(line["job_id"], line["request_id"]) for line in objects(folder)] == [("job-1", "req-1"), (None, "req-2")]


@pytest.mark.parametrize("format", ["text", "json"])
def test_events_of_structlog_are_lines_with_their_fields(folder: Path, format: str) -> None:
    logs.set_up(str(folder), "info", format)
    log = structlog.wrap_logger(
        logging.getLogger("tests.of.logs"),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
    )
    log.warning("paid", amount=3, level_of_detail="low")

    if format == "text":
        assert text(folder).endswith(" WARNING tests.of.logs: paid amount=3 level_of_detail='low'\n")
    else:
        (line,) = objects(folder)
        assert (line["msg"], line["level"], line["amount"], line["level_of_detail"]) == ("paid", "WARNING", 3, "low")


def test_an_event_of_structlog_needs_no_set_up_to_have_its_level_and_its_fields(folder: Path) -> None:
    logs.set_up(str(folder), "info", "json")
    log = structlog.get_logger("tests.of.logs").bind(order=17)
    log.debug("not asked for")
    log.warning("no %s", "price", currency="EUR")

    (line,) = objects(folder)
    assert (line["msg"], line["level"], line["logger"]) == ("no price", "WARNING", "tests.of.logs")
    assert (line["order"], line["currency"]) == (17, "EUR")


def test_whoever_sets_structlog_up_is_not_overruled(folder: Path) -> None:
    said: list[dict[str, Any]] = []

    def keep(_logger: Any, _name: str, event: Any) -> Any:
        said.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    logs.set_up(str(folder), "info")
    structlog.get_logger().info("mine")

    assert [event["event"] for event in said] == ["mine"]
    assert text(folder) == ""


def test_as_text_a_traceback_is_told_once(folder: Path) -> None:
    logs.set_up(str(folder), "info")
    try:
        raise ValueError("expected")
    except ValueError:
        logging.getLogger("tests.of.logs").exception("failed", stack_info=True)

    written = text(folder)
    assert written.count("Traceback") == written.count("ValueError: expected") == 1
    assert written.count("\nStack (most recent call last)") == 1


def test_text_that_is_no_utf8_is_written_as_it_can_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(str(folder), "info")
    logging.getLogger("tests.of.logs").info("half \ud800 a pair")

    assert text(folder).endswith("half \\ud800 a pair\n")
    assert capsys.readouterr().err == ""


def test_others_may_say_the_same_words(folder: Path) -> None:
    logs.set_up(str(folder), "info")
    logging.getLogger("miniflow").error("Unhandled exception in task %s.", "id-1")

    assert "Unhandled exception in task id-1." in text(folder)


@pytest.mark.parametrize("name", ["huey", "huey.consumer", "uvicorn", "uvicorn.error", "watchfiles.main"])
def test_talkative_libraries_are_heard_from_warnings_on(folder: Path, name: str) -> None:
    logs.set_up(str(folder), "debug")
    logging.getLogger(name).info("I am well")
    logging.getLogger(name).warning("I am not well")

    assert re.findall(r"I am.*", text(folder)) == ["I am not well"]


def test_a_message_that_is_no_text_does_no_harm(folder: Path) -> None:
    logs.set_up(str(folder), "info")
    logging.getLogger("huey").error(ValueError("odd"))

    assert "odd" in text(folder)
