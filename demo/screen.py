# SPDX-License-Identifier: Apache-2.0
"""Prints the demo: what happens now on a line that is overwritten, stories as they end. Any thread may print.

Colour and the overwritten line only where standard output is a terminal (and NO_COLOR is not set).
"""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "green": "32", "red": "31", "cyan": "36", "yellow": "33"}
_WIDTH = 110


class Screen:
    """Standard output of the demo."""

    def __init__(self, stream: TextIO | None = None, is_terminal: bool | None = None) -> None:
        self._stream = stream or sys.stdout
        self.is_terminal = self._stream.isatty() if is_terminal is None else is_terminal
        self._colours = self.is_terminal and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        self._hung = False

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour, where there are any."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self._colours else text

    def line(self, text: str = "") -> None:
        """One line that stays."""
        with self._lock:
            self._clear()
            self._stream.write(text + "\n")
            self._stream.flush()

    def block(self, lines: list[str]) -> None:
        """Lines that belong together."""
        self.line("\n".join(lines))

    def doing(self, text: str) -> None:
        """What goes on now: overwritten by the next on a terminal, else one line with the seconds so far."""
        seconds = time.monotonic() - self._began_s
        with self._lock:
            if self.is_terminal:
                self._clear()
                self._stream.write(self.paint(f"{seconds:5.0f} s  {text}"[:_WIDTH], "dim"))
                self._hung = True
            else:
                self._stream.write(f"{seconds:5.0f} s  {text}\n")
            self._stream.flush()

    def _clear(self) -> None:
        if self._hung:
            self._stream.write("\r\x1b[K")
            self._hung = False

    def labelled(self, label: str, text: str, colour: str) -> str:
        """A told line: a word in the margin, the text wrapped beside it; addresses are not broken."""
        pieces = textwrap.wrap(text, _WIDTH - 11, break_long_words=False, break_on_hyphens=False) or [""]
        first = f"   {self.paint(f'{label:<7}', colour)} {pieces[0]}"
        return "\n".join([first, *(" " * 11 + piece for piece in pieces[1:])])
