"""What a process writes becomes lines of a log, and of a flood the end is kept and the rest counted."""

from __future__ import annotations

import sys
from typing import Any, cast

import pytest

from miniflow.errors import JobCancelled
from miniflow.executors.messages import Said
from miniflow.executors.output import KEPT_BYTES, LINE_BYTES_MAX, Output, in_words
from miniflow.executors.remotelog import LINE_CHARS_MAX, RemoteLog
from miniflow.joblog import JobLog


class Log:
    """A log that is full from ``head`` lines on."""

    def __init__(self, head: int = sys.maxsize) -> None:
        self.lines: list[str] = []
        self.levels: set[str] = set()
        self.left = (0, 0)
        self._head = head

    @property
    def full(self) -> bool:
        return len(self.lines) >= self._head

    def add(self, level: str, message: str) -> bool:
        self.lines.append(message)
        self.levels.add(level)
        return True

    def leave_out(self, lines: int, size: int) -> None:
        self.left = (self.left[0] + lines, self.left[1] + size)


def output(log: Log, **options: Any) -> Output:
    made = Output("INFO", **options)
    made.begin(lambda: cast("JobLog", log))
    return made


def test_lines_are_put_together_from_pieces_and_the_last_needs_no_end() -> None:
    log = Log()
    stream = output(log)
    for piece in (b"one\ntw", b"o\r\nthr", b"ee"):
        stream.feed(piece)
    assert log.lines == ["one", "two"]
    stream.end()
    assert (log.lines, log.levels) == (["one", "two", "three"], {"INFO"})


def test_what_is_no_text_is_shown_as_well_as_can_be() -> None:
    log = Log()
    stream = output(log)
    stream.feed(b"caf\xe9 \xff\xfe\n\x80\n" + "grün\n".encode())
    assert log.lines == ["caf\ufffd \ufffd\ufffd", "\ufffd", "grün"]


def test_of_a_line_that_is_drawn_again_the_last_drawing_stays() -> None:
    log = Log()
    output(log).feed(b"10%\r50%\r100%\n")
    assert log.lines == ["100%"]


def test_a_line_without_end_is_cut() -> None:
    log = Log()
    stream = output(log)
    stream.feed(b"x" * (LINE_BYTES_MAX + 1))
    stream.feed(b"y\n")
    assert [len(line) for line in log.lines] == [LINE_BYTES_MAX + 1, 1]


def test_of_a_flood_the_newest_is_kept_and_each_line_counted() -> None:
    log = Log(head=10)
    seen: list[bytes] = []
    stream = output(log, taken=lambda line: seen.append(line) or False)  # type: ignore[func-returns-value]
    total = 0
    for block in range(400):
        stream.feed(b"".join(b"line %d\n" % (block * 1_000 + n) for n in range(1_000)))
        total += 1_000
    stream.end()

    assert log.lines[:10] == [f"line {n}" for n in range(10)]
    assert log.lines[-1] == f"line {total - 1}"
    assert len(log.lines) + log.left[0] == total
    assert sum(map(len, log.lines[10:])) <= KEPT_BYTES
    assert seen[-1] == b"line %d" % (total - 1)


def test_the_last_words_are_kept_for_an_error() -> None:
    stream = output(Log())
    stream.feed(b"a" * 5_000)
    stream.feed(b"the end\xff\n")
    assert in_words(stream.last).endswith("athe end\ufffd")
    assert in_words(stream.last).startswith("; last output: aaa")
    assert in_words(b"  \n") == ""


def test_what_was_said_in_another_way_is_of_the_last_words_and_not_said_twice() -> None:
    log = Log()
    stream = output(log)
    stream.feed(b"half a line")
    stream.also("said")
    assert in_words(stream.last) == "; last output: half a line\nsaid"
    stream.also("é" * 5_000)
    stream.feed(b"the end\n")
    assert in_words(stream.last).endswith("é\nthe end")
    assert len(stream.last) <= 2_000
    stream.begin(lambda: log)
    stream.also("said")
    assert in_words(stream.last) == "; last output: said"
    stream.end()
    assert log.lines == ["half a linethe end"], "what was said is in the log by itself"


def test_a_line_that_is_taken_is_no_line_of_the_log() -> None:
    log = Log()
    output(log, taken=lambda line: line.startswith(b"{")).feed(b"a\n{}\nb\n")
    assert log.lines == ["a", "b"]


def test_between_two_jobs_nothing_is_kept() -> None:
    log = Log()
    stream = output(log)
    stream.end()
    stream.feed(b"nobody's\n")
    stream.begin(lambda: cast("JobLog", log))
    stream.feed(b"mine\n")
    assert log.lines == ["mine"]


def test_a_log_that_holds_its_job_back_does_not_hold_back_one_that_is_being_stopped() -> None:
    class Stopped(Log):
        def add(self, level: str, message: str) -> bool:
            raise JobCancelled("stop")

    output(Stopped()).feed(b"a\nb\n")


# -------------------------------------------------------------------------------------------------- the other end of it


def remote() -> tuple[RemoteLog, list[tuple[str, str]]]:
    sent: list[tuple[str, str]] = []

    def send(said: Said) -> bool:
        sent.append((said.level, said.message))
        return True

    return RemoteLog(send), sent


def test_a_print_is_sent_when_its_line_is_complete_and_half_a_line_at_the_end() -> None:
    log, sent = remote()
    log.write(0, "a")
    log.write(0, "b\nc")
    log.write(1, "warn\n")
    assert sent == [("INFO", "ab"), ("WARNING", "warn")]
    log.close()
    assert sent[2:] == [("INFO", "c")]


def test_after_the_end_nothing_is_sent_and_what_is_printed_goes_nowhere_else() -> None:
    log, sent = remote()
    log.close()
    assert (log.write(0, "a\n"), log.add("INFO", "b"), sent) == (True, False, [])


@pytest.mark.parametrize("text", ["x" * (LINE_CHARS_MAX * 3), "x" * (LINE_CHARS_MAX * 3) + "\n"])
def test_a_very_long_line_is_cut(text: str) -> None:
    log, sent = remote()
    log.write(0, text)
    assert len(sent) == 1
    assert len(sent[0][1]) <= LINE_CHARS_MAX + 100


def test_of_a_progress_bar_the_last_drawing_is_sent() -> None:
    log, sent = remote()
    log.write(1, "10%\r20%\r")
    log.write(1, "30%\n")
    assert sent == [("WARNING", "30%")]
