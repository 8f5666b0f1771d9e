# SPDX-License-Identifier: Apache-2.0
"""Log lines: one each, plain, and safe whatever is in them."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from kernob.log import LineFormatter, one_line, wants_colour


def record(
    message: str, *args: object, level: int = logging.WARNING, exc_info: bool = False
) -> logging.LogRecord:
    info = sys.exc_info() if exc_info else None
    made = logging.LogRecord("kernob.export", level, __file__, 1, message, args, info)
    made.created, made.msecs = 1_700_000_000.0125, 12.5
    return made


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_record_is_one_line_with_utc_time_level_and_module() -> None:
    """Read by people and by grep."""
    line = LineFormatter(colour=False, tracebacks=False).format(record("%s points refused", 3))
    assert line == "2023-11-14T22:13:20.012Z warning kernob.export: 3 points refused"


def test_what_comes_from_outside_cannot_break_the_line_or_reach_the_terminal() -> None:
    """Line ends, escape sequences, bidirectional controls and invalid UTF-8 are made visible."""
    assert one_line("a\nb\r\n\nc") == "a | b | c"
    assert one_line("\x1b[2J\x07\u202e\udcff\u2028é") == "\\x1b[2J\\x07\\u202e\\udcff | é"
    line = LineFormatter(colour=False, tracebacks=False).format(record("process %s", "evil\n2023 fake"))
    assert line.endswith("process evil | 2023 fake")


def test_an_exception_is_part_of_the_line_and_its_traceback_only_asked_for() -> None:
    """Operators get the reason; KERNOB_LOG_LEVEL=debug gets the place too."""
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        made = record("decoding failed", exc_info=True)
    short = LineFormatter(colour=False, tracebacks=False).format(made)
    assert short.endswith("decoding failed: ValueError: bad | value")
    assert "\n" not in short
    assert "Traceback (most recent call last)" in LineFormatter(colour=False, tracebacks=True).format(made)


@pytest.mark.parametrize(
    ("stream", "environ", "colour"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colour_only_on_a_terminal_that_takes_it(
    stream: io.StringIO, environ: dict[str, str], colour: bool
) -> None:
    """NO_COLOR counts when it is not empty (no-color.org)."""
    assert wants_colour(stream, environ) is colour


def test_colour_stands_around_the_level_alone() -> None:
    """The rest of a line stays as grep wants it."""
    line = LineFormatter(colour=True, tracebacks=False).format(record("x", level=logging.ERROR))
    assert line == "2023-11-14T22:13:20.012Z \x1b[31merror\x1b[0m kernob.export: x"
    assert "\x1b" not in LineFormatter(colour=True, tracebacks=False).format(record("x", level=logging.INFO))
