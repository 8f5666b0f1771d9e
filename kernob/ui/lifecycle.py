# SPDX-License-Identifier: Apache-2.0
"""`kernob lifecycle`: crash loops, programs and how they ended, newest ends; one page, or JSON.

In: the agent's report "lifecycle". Out: rich text. Called by `commands.lifecycle`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kernob.ui.client import fetch_report
from kernob.ui.page import print_page
from kernob.view import printable

_REASONS: Final = 4


def run_lifecycle(path: Path, limit: int, *, as_json: bool) -> int:
    """Print the page, return the exit code. Raises AgentUnreachableError, PreconditionError, KernobError."""
    report = fetch_report(path, "lifecycle", {"limit": str(limit)})
    if as_json:
        json.dump(report, sys.stdout)
        sys.stdout.write("\n")
        return 0
    print_page(partial(page, report))
    return 0


def page(report: dict[str, Any], _width: int) -> RenderableType:
    """The whole page."""
    totals = report["totals"]
    counts = ", ".join(f"{totals[each]:,} {each}" for each in ("forks", "execs", "exits"))
    parts: list[RenderableType] = [
        Text(f"{counts} since the agent started"),
        Text(),
        *_loops(report["crash_loops"]),
        Text(),
        *_programs(report["programs"], report["programs_known"]),
    ]
    if report["ends"]:
        parts += [Text(), *_ends(report["ends"])]
    return Group(*parts)


def _loops(loops: list[dict[str, Any]]) -> Iterable[RenderableType]:
    if not loops:
        yield Text("No crash loops.", style="green")
        return
    yield Text(f"CRASH LOOPS NOW: {len(loops)}", style="bold red")
    table = _table("service", "executable", "!restarts", "!in window", "!life", "since", "last", "ends", "by")
    for loop in loops:
        table.add_row(
            Text(printable(loop["service"]), style="bold red"),
            printable(loop["executable"]),
            f"{loop['restarts']:,}",
            f"{loop['restarts_in_window']:,}",
            length(loop["life_s"]),
            clock(loop["began_unix_ns"]),
            clock(loop["last_unix_ns"]),
            reasons(loop["reasons"]),
            printable(f"{loop['parent']} ({loop['parent_pid']})" if loop["parent"] else "container"),
        )
    yield table


def _programs(programs: list[dict[str, Any]], known: int) -> Iterable[RenderableType]:
    yield Text(f"Programs (the busiest {len(programs)} of {known})", style="bold")
    table = _table("service", "executable", "!starts", "!exits", "!failed", "ends")
    for each in programs:
        table.add_row(
            printable(each["service"]),
            printable(each["executable"]),
            f"{each['starts']:,}",
            f"{each['exits']:,}",
            Text(f"{each['failures']:,}", style="yellow" if each["failures"] else "dim"),
            reasons(each["reasons"]),
        )
    yield table


def _ends(ends: list[dict[str, Any]]) -> Iterable[RenderableType]:
    yield Text("Newest ends told (failures, unless more is asked for)", style="bold")
    table = _table("time", "service", "!pid", "!life", "how", "command line")
    for end in ends:
        style = "bold red" if end["signal"] else "yellow" if end["code"] else ""
        table.add_row(
            clock(end["time_unix_ns"]),
            printable(end["service"]),
            str(end["pid"]),
            length(end["life_s"]),
            Text(printable(end["said"]), style=style),
            Text(printable(end["command_line"][:120]), overflow="ellipsis", no_wrap=True),
        )
    yield table


def _table(*columns: str) -> Table:
    """Columns; those with ! are numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(
            name.removeprefix("!"), justify="right" if name.startswith("!") else "left", overflow="fold"
        )
    return table


def reasons(found: list[dict[str, Any]]) -> str:
    """How often which way: "exit code 0 x12, SIGKILL x1"."""
    shown = [f"{printable(each['said'])} x{each['count']:,}" for each in found[:_REASONS]]
    return ", ".join(shown) + (", ..." if len(found) > _REASONS else "")


def length(seconds: float) -> str:
    """A short length of time."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def clock(unix_ns: int) -> str:
    """Local time of day to the millisecond; the date too where it is another day's."""
    seconds, rest_ns = divmod(unix_ns, 10**9)
    then, now = datetime.fromtimestamp(seconds).astimezone(), datetime.now().astimezone()
    day = "" if then.date() == now.date() else f"{then:%m-%d} "
    return f"{day}{then:%H:%M:%S}.{rest_ns // 10**6:03d}"
