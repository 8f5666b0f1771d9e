# SPDX-License-Identifier: Apache-2.0
"""`kernob blocked`: which threads sit in a system call now, for how long, on what.

The running agent's report enters (`features.blocked`), text leaves on standard output. Called by `commands`.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from kernob.config import Settings
from kernob.ui.client import fetch_report
from kernob.ui.histograms import span
from kernob.ui.page import print_page
from kernob.ui.syscalls import who
from kernob.ui.tables import clean, clock, fit

CLASSES: Final = ("stuck", "waiting", "idle")
PIPED_ROWS: Final = 100
_NARROW: Final = 120
_STYLES: Final = {"stuck": "bold red", "waiting": "yellow", "idle": ""}
_CLEAR: Final = "\x1b[H\x1b[2J"

Row = Mapping[str, Any]


def run_blocked(
    settings: Settings,
    words: Mapping[str, str],
    *,
    every: bool = False,
    as_json: bool = False,
    limit: int | None = None,
    watch_s: float | None = None,
) -> int:
    """Print who is blocked, with `watch_s` again and again; return the exit code.

    `every`: idle threads, too. Raises AgentUnreachableError, PreconditionError and KernobError. Ctrl-C ends
    it with 0.
    """
    try:
        while True:
            report = fetch_report(settings.socket_path, "blocked", words)
            if as_json:
                rows = [row for row in report["rows"] if every or row["class"] != "idle"]
                document = {**report, "rows": rows[:limit], "threads": _counts(report)}
                sys.stdout.write(json.dumps(document) + "\n")
                sys.stdout.flush()
            else:
                if watch_s is not None and sys.stdout.isatty():
                    sys.stdout.write(_CLEAR)
                print_page(partial(page, report, every, limit or PIPED_ROWS))
            if watch_s is None:
                return 0
            time.sleep(watch_s)
    except KeyboardInterrupt:
        return 0


def _counts(report: Mapping[str, Any]) -> dict[str, int]:
    """Threads by class, those included that the report leaves out."""
    found = Counter(str(row["class"]) for row in report["rows"])
    found.update({str(name): int(count) for name, count in report["left_out"].items()})
    return {name: found[name] for name in CLASSES}


def groups(rows: list[Row]) -> list[tuple[Row, int]]:
    """Put threads of a process together that sit in the same call on the same thing; the longest stands."""
    found: dict[tuple[Any, ...], tuple[Row, int]] = {}
    for row in rows:
        key = (row["class"], row["pid"], row["syscall"], row["on"], _thing(row))
        first, count = found.get(key, (row, 0))
        found[key] = (first if first["for_s"] >= row["for_s"] else row, count + 1)
    return list(found.values())


def _thing(row: Row) -> str:
    """What is waited for, without the address of a futex: a pool's workers have one each."""
    return "futex" if row["on"] == "futex" and str(row["what"]).startswith("futex") else str(row["what"])


def page(report: Mapping[str, Any], every: bool, limit: int, width: int) -> RenderableType:
    """Return the page: how many of each class, then who."""
    counts = _counts(report)
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    after = f"{report['after_s']:g} s"
    heading = f"Threads in one call for more than {after} at {clock(report['time_unix_ns'])}: {said}"
    parts: list[RenderableType] = [Text(fit(heading, width).rstrip(), "bold")]
    found = groups([row for row in report["rows"] if every or row["class"] != "idle"])
    if found:
        parts.append(
            Text(_line("SINCE", "FOR", "SERVICE/PROCESS[PID]", "THREAD", "CALL", "ON WHAT", width), "dim")
        )
    for row, count in found[:limit]:
        parts.append(Text(_row(row, count, width), _STYLES.get(str(row["class"]), "")))
    if len(found) > limit:
        parts.append(Text(f"{len(found) - limit} more lines: --limit", "dim"))
    if counts["idle"] and not every:
        parts.append(
            Text("Idle ones wait for whatever comes (epoll, futex, timers): --all shows them.", "dim")
        )
    return Group(*parts)


def _row(row: Row, count: int, width: int) -> str:
    name = f"{who((0, str(row['executable']), str(row['service']), ''))}[{row['pid']}]"
    thread = clean(str(row["thread"])) if count == 1 else f"{count} threads"
    what = clean(str(row["what"])) or str(row["on"])
    mark = " (uninterruptible)" if row["state"] == "D" else ""
    cells = (clock(row["since_unix_ns"]), span(row["for_s"]), name, thread, str(row["syscall"]), what + mark)
    return _line(*cells, width)


def _line(since: str, lasted: str, name: str, thread: str, call: str, what: str, width: int) -> str:
    """One row; on a narrow terminal, what is waited for has a second line to itself."""
    if width < _NARROW:
        name_cells = max(16, width - 46)
        rest, indent = max(12, width - 17), f"\n{' ' * 17}"
    else:
        name_cells = min(32, (width - 50) // 2)
        rest, indent = width - 48 - name_cells, ""
    first = f"{fit(since, 8)} {lasted:>7} {fit(name, name_cells, middle=True)} {fit(thread, 15)} "
    return f"{first}{fit(call, 12)} {indent}{fit(what, rest).rstrip()}"
