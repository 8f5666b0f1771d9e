# SPDX-License-Identifier: Apache-2.0
"""Tables on standard output, medians and spreads. Called by every benchmark."""

from __future__ import annotations

import statistics
import sys
import textwrap
from collections.abc import Sequence

_NOTE_WIDTH = 110


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Prints one table in Markdown's form, its first column to the left, with a note below it."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    print(f"\n### {title}\n")
    for row in (columns, rule, *rows):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |")
    if note:
        print("", *textwrap.wrap(note, _NOTE_WIDTH), sep="\n")
    sys.stdout.flush()


def progress(text: str) -> None:
    """One line on standard error, so that a long run can be followed."""
    print(f"... {text}", file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    return statistics.median(values) if values else float("nan")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median and, in brackets, the middle half: "57 (55..60)"."""
    if len(values) < 4:
        return f"{median(values):.{digits}f}"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{median(values):.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"
