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
from kernob.ui.tables import fit
from kernob.view import printable

_REASONS: Final = 4
_WIDE: Final = 100
_NAME_MOST: Final = 48
_COMMAND_CHARS: Final = 120


def run_lifecycle(path: Path, limit: int, *, as_json: bool) -> int:
    """Print the page, return the exit code. Raises AgentUnreachableError, PreconditionError, KernobError."""
    report = fetch_report(path, "lifecycle", {"limit": str(limit)})
    if as_json:
        json.dump(report, sys.stdout)
        sys.stdout.write("\n")
        return 0
    print_page(partial(page, report))
    return 0


def page(report: dict[str, Any], width: int) -> RenderableType:
    """The whole page, each row of its tables one line of at most `width` cells."""
    totals = report["totals"]
    counts = ", ".join(f"{totals[each]:,} {each}" for each in ("forks", "execs", "exits"))
    parts: list[RenderableType] = [
        Text(f"{counts} since the agent started; times are {datetime.now().astimezone():%Z}"),
        Text(),
        *_loops(report["crash_loops"]),
        Text(),
        *_programs(report["programs"], report["programs_known"], width),
    ]
    if report["ends"]:
        parts += [Text(), *_ends(report["ends"], width)]
    return Group(*parts)


def _loops(loops: list[dict[str, Any]]) -> Iterable[RenderableType]:
    if not loops:
        yield Text("No crash loops.", style="green")
        return
    yield Text(f"CRASH LOOPS NOW: {len(loops)}", style="bold red")
    for loop in loops:
        service, executable = printable(loop["service"]), printable(loop["executable"])
        name = Text(f"{service} ({executable})" if executable != service else service, style="bold red")
        parent = f"{printable(loop['parent'])} ({loop['parent_pid']})" if loop["parent"] else "its container"
        yield name
        yield Text(
            f"  {loop['restarts']:,} restarts, {loop['restarts_in_window']:,} of them within the window; "
            f"lives of {length(loop['life_s'])}"
        )
        yield Text(f"  {reasons(loop['reasons'])}; started again by {parent}")
        yield Text(f"  since {clock(loop['began_unix_ns'])}, last {clock(loop['last_unix_ns'])}")


def _programs(programs: list[dict[str, Any]], known: int, width: int) -> Iterable[RenderableType]:
    yield Text(f"Programs (the busiest {len(programs)} of {known})", style="bold")
    table = _table("service", "executable", "!starts", "!exits", "!failed", "ends")
    for each in programs:
        table.add_row(
            _named(each["service"], width),
            _named(each["executable"], width),
            f"{each['starts']:,}",
            f"{each['exits']:,}",
            Text(f"{each['failures']:,}", style="yellow" if each["failures"] else "dim"),
            reasons(each["reasons"]),
        )
    yield table


def _ends(ends: list[dict[str, Any]], width: int) -> Iterable[RenderableType]:
    yield Text("Newest ends told (failures, unless more is asked for)", style="bold")
    wide = width >= _WIDE
    table = _table("time", "service", "!pid", "!life", "how")
    if wide:  # all that the others leave, so that none of them is cut for it
        table.add_column("command line", overflow="ellipsis", no_wrap=True, ratio=1)
        table.expand = True
    for end in ends:
        style = "bold red" if end["signal"] else "yellow" if end["code"] else ""
        cells: list[RenderableType] = [
            clock(end["time_unix_ns"]),
            _named(end["service"], width),
            str(end["pid"]),
            length(end["life_s"]),
            Text(printable(end["said"]), style=style),
        ]
        table.add_row(*cells, *([printable(end["command_line"][:_COMMAND_CHARS])] if wide else []))
    yield table


def _table(*columns: str) -> Table:
    """Columns; those with ! are numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(
            name.removeprefix("!"),
            justify="right" if name.startswith("!") else "left",
            overflow="ellipsis",
            no_wrap=True,
        )
    return table


def _named(name: str, width: int) -> str:
    """A name, cut in its middle to a third of a page (at most 48 cells): its end tells workers apart."""
    return fit(name, min(_NAME_MOST, width // 3), middle=True).rstrip()


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
