# SPDX-License-Identifier: Apache-2.0
"""Prints one page on standard output: rich text enters, bytes that any terminal or file can hold leave.

Called by `ui.top` and `ui.doctor`. Colour only where a terminal reads it (and NO_COLOR is not set);
letters only the output's own encoding has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from rich.console import Console, RenderableType

PIPED_COLUMNS = 120
_ASCII = str.maketrans("→←·▼▲…†█▏▎▍▌▋▊▉“”▁▂▃▄▅▆▇", "><.v^~+#.......''.,-=+*%")


def print_page(render: Callable[[int], RenderableType]) -> None:
    """Print what `render` makes of the page's width in cells: the terminal's, COLUMNS, else 120."""
    unknown = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    console = Console(width=PIPED_COLUMNS if unknown else None, highlight=False, markup=False, emoji=False)
    with console.capture() as printed:
        console.print(render(console.width))
    text = printed.get()
    if not sys.stdout.isatty():
        text = "".join(line.rstrip() + "\n" for line in text.splitlines())
    encoding = sys.stdout.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text)
    sys.stdout.flush()
