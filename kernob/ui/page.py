# SPDX-License-Identifier: Apache-2.0
"""Prints one page on standard output: rich text enters, bytes that any terminal or file can hold leave.

Called by every screen but the live one. Colour only where a terminal reads it (and NO_COLOR is not set);
letters only the output's own encoding has, in the place of others such as look like them.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable

from rich.console import Console, RenderableType

PIPED_COLUMNS = 120
_ASCII = str.maketrans(
    "→←·▼▲…†█▏▎▍▌▋▊▉“”▁▂▃▄▅▆▇├└─▶✗↻↑↓│┌┐┘╭╮╰╯┃━┏┓┗┛",
    "><.v^~+#.......''.,-=+*%|`->x@^v|+++++++|-++++",
)
LOOKALIKES = "kernob-lookalikes"
"""What to do with letters an encoding lacks (`errors=` of codecs): one that looks like it, else "?"."""


def _lookalikes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end].translate(_ASCII)
    return "".join(letter if letter.isascii() else "?" for letter in missing), error.end


codecs.register_error(LOOKALIKES, _lookalikes)


def printed_as(text: str) -> str:
    """The text with only such letters as standard output's encoding has, each in one place as before."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, LOOKALIKES).decode(encoding)


def print_page(render: Callable[[int], RenderableType]) -> None:
    """Print what `render` makes of the page's width in cells: the terminal's, COLUMNS, else 120."""
    unknown = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    console = Console(width=PIPED_COLUMNS if unknown else None, highlight=False, markup=False, emoji=False)
    with console.capture() as printed:
        console.print(render(console.width))
    text = printed.get()
    if not sys.stdout.isatty():
        text = "".join(line.rstrip() + "\n" for line in text.splitlines())
    sys.stdout.write(printed_as(text))
    sys.stdout.flush()
