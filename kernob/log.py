# SPDX-License-Identifier: Apache-2.0
"""Logging as one plain line per record on standard error.

A level and a stream enter, once, from `cli`; every module then logs through `logging.getLogger(__name__)`.
What comes from outside (process names, answers of servers) cannot break the line or reach the terminal as
an escape sequence. Colour appears only on a terminal, and not with NO_COLOR (no-color.org).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TextIO

_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31", logging.DEBUG: "2"}


def one_line(text: str) -> str:
    """`text` with line ends as " | " and every other unprintable character escaped."""
    joined = " | ".join(part for part in text.splitlines() if part.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in joined)


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` is a terminal that takes colour and nobody asked for none."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z warning kernob.export: text`; with `tracebacks`, those follow below."""

    def __init__(self, colour: bool, tracebacks: bool) -> None:
        super().__init__()
        self._colour = colour
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        level = record.levelname.lower()
        if self._colour and record.levelno in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelno]}m{level}\x1b[0m"
        line = f"{when} {level} {record.name}: {one_line(record.getMessage())}"
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line += f": {type(error).__name__}: {one_line(str(error))}"
            if self._tracebacks:
                line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(level: str, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Send records of Kernob from `level` on (a word of Settings.log_level) and others' warnings to `stream`.

    Called again, it replaces what it set up before.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(wants_colour(stream, environ), tracebacks=level == "debug"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("kernob").setLevel(level.upper())
    logging.captureWarnings(capture=True)
