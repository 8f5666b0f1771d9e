# SPDX-License-Identifier: Apache-2.0
"""`kernob syscalls`: where the time went, as a table with histograms, as bars, or as JSON.

The running agent's report enters (`features.syscalls`), text leaves on standard output. Called by `commands`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from kernob.config import Settings
from kernob.ui.client import fetch_report
from kernob.ui.histograms import longest, octaves, quantile, span, sparkline
from kernob.ui.page import print_page
from kernob.ui.tables import clean, clock, duration, fit, human, percent

PIPED_ROWS: Final = 50
_SPARK_CELLS: Final = 14
_BAR_CELLS: Final = 40
_WIDE: Final = 100
_CLEAR: Final = "\x1b[H\x1b[2J"

Key = tuple[int, str, str, str]
"""PID (0: many), executable, service, call."""


@dataclass(slots=True)
class Line:
    """One call of one process, or of all processes of an executable in a service."""

    key: Key
    time_s: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict)
    alive: bool = True

    @property
    def count(self) -> int:
        """Calls that returned."""
        return sum(self.buckets.values())


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be seen: rows by `group` ("service" or "process"), the `limit` first by `sort`."""

    group: str = "service"
    sort: str = "time"
    syscall: str = ""
    limit: int | None = None
    bars: bool = False


def lines_of(report: Mapping[str, Any], choice: Choice) -> dict[Key, Line]:
    """Sum a report's rows up by what a line stands for."""
    found: dict[Key, Line] = {}
    for row in report["rows"]:
        if choice.syscall and row["syscall"] != choice.syscall:
            continue
        pid = row["pid"] if choice.group == "process" else 0
        key = (pid, str(row["executable"]), str(row["service"]), str(row["syscall"]))
        line = found.setdefault(key, Line(key, alive=False))
        line.time_s += row["time_s"]
        line.alive |= bool(row["alive"]) or not pid
        for bucket, count in row["buckets"].items():
            line.buckets[int(bucket)] = line.buckets.get(int(bucket), 0) + int(count)
    return found


def growth(now: Mapping[Key, Line], before: Mapping[Key, Line]) -> dict[Key, Line]:
    """Return what happened between two reports; lines without any call are left out."""
    found = {}
    for key, line in now.items():
        old = before.get(key)
        if old is not None and old.count > line.count:  # a process's PID came back
            old = None
        if old is None:
            found[key] = line
            continue
        buckets = {b: n - old.buckets.get(b, 0) for b, n in line.buckets.items() if n > old.buckets.get(b, 0)}
        if buckets:
            found[key] = Line(key, max(0.0, line.time_s - old.time_s), buckets, line.alive)
    return found


def ordered(lines: Iterable[Line], sort: str, bounds_s: list[float]) -> list[Line]:
    """Sort, the largest first."""
    by: dict[str, Callable[[Line], float]] = {
        "time": lambda line: line.time_s,
        "count": lambda line: line.count,
        "p99": lambda line: quantile(line.buckets, 0.99, bounds_s),
        "max": lambda line: longest(line.buckets, bounds_s),
    }
    return sorted(lines, key=by[sort], reverse=True)


def run_syscalls(
    settings: Settings,
    choice: Choice,
    words: Mapping[str, str],
    *,
    as_json: bool = False,
    watch_s: float | None = None,
) -> int:
    """Print what the agent measured, with `watch_s` again what happened since; return the exit code.

    Raises AgentUnreachableError, PreconditionError and KernobError. Ctrl-C ends it with 0.
    """
    before: dict[Key, Line] | None = None
    started_unix_ns = 0
    try:
        while True:
            report = fetch_report(settings.socket_path, "syscalls", words)
            lines = lines_of(report, choice)
            since = started_unix_ns or report["started_unix_ns"]
            shown = lines if before is None else growth(lines, before)
            _print(report, list(shown.values()), choice, since, as_json=as_json, again=watch_s is not None)
            if watch_s is None:
                return 0
            before, started_unix_ns = lines, report["time_unix_ns"]
            time.sleep(watch_s)
    except KeyboardInterrupt:
        return 0


def _print(
    report: Mapping[str, Any], lines: list[Line], choice: Choice, since: int, *, as_json: bool, again: bool
) -> None:
    bounds_s = [float(bound) for bound in report["bounds_s"]]
    found = ordered(lines, choice.sort, bounds_s)
    if as_json:
        document = {
            "time_unix_ns": report["time_unix_ns"],
            "since_unix_ns": since,
            "watched": report["watched"],
            "bounds_s": bounds_s,
            "rows": [_json_row(line, bounds_s) for line in found[: choice.limit]],
        }
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
        return
    if again and sys.stdout.isatty():
        sys.stdout.write(_CLEAR)
    print_page(partial(page, report, found, choice, since))


def _json_row(line: Line, bounds_s: list[float]) -> dict[str, Any]:
    pid, executable, service, call = line.key
    return {
        **({"pid": pid} if pid else {}),
        "executable": executable,
        "service": service,
        "alive": line.alive,
        "syscall": call,
        "count": line.count,
        "time_s": line.time_s,
        **{f"p{p}_s": quantile(line.buckets, p / 100, bounds_s) for p in (50, 95, 99)},
        "max_s": longest(line.buckets, bounds_s),
        "buckets": {str(bucket): count for bucket, count in sorted(line.buckets.items())},
    }


def page(
    report: Mapping[str, Any], found: list[Line], choice: Choice, since: int, width: int
) -> RenderableType:
    """Return the page: a heading, then a line or bars for each of `found`."""
    bounds_s = [float(bound) for bound in report["bounds_s"]]
    total_s = sum(line.time_s for line in found)
    limit = choice.limit or PIPED_ROWS
    shown = found[:limit]
    passed = duration((report["time_unix_ns"] - since) / 1e9)
    heading = f"System calls since {clock(since)} ({passed}): {span(total_s)} in {_calls(found)}"
    parts: list[RenderableType] = [Text(fit(heading, width).rstrip(), "bold")]
    if not found:
        watched = ", ".join(clean(str(name)) for name in report["watched"])
        return Group(*parts, Text(f"Nothing that matches made one of these calls: {watched}."))
    if choice.bars:
        for line in shown:
            parts += _bars(line, bounds_s, total_s)
    else:
        parts.append(Text(_titles(width, choice), "dim"))
        parts += [Text(_row(line, bounds_s, total_s, width, choice)) for line in shown]
    if len(found) > len(shown):
        parts.append(Text(f"{len(found) - len(shown):,} more lines: --limit", "dim"))
    parts.append(Text("Processes that ended a while ago are left out: the metrics have them.", "dim"))
    return Group(*parts)


def _calls(found: list[Line]) -> str:
    count = sum(line.count for line in found)
    return f"{count:,} call{'' if count == 1 else 's'}"


def _titles(width: int, choice: Choice) -> str:
    who = "SERVICE/PROCESS" + ("[PID]" if choice.group == "process" else "")
    spark = f" {'1us         3m':<{_SPARK_CELLS}}" if width >= _WIDE else ""
    figures = " ".join(f"{name:>7}" for name in ("P50", "P95", "P99", "MAX"))
    return f"{fit(who, _name_cells(width))} {'CALL':<12} {'COUNT':>6} {'TIME':>7} SHARE{spark} {figures}"


def _name_cells(width: int) -> int:
    return max(14, width - 66 - (_SPARK_CELLS + 1 if width >= _WIDE else 0))


def _row(line: Line, bounds_s: list[float], total_s: float, width: int, choice: Choice) -> str:
    pid, _executable, _service, call = line.key
    name = who(line.key) + (
        f"[{pid}]{'' if line.alive else '†'}" if choice.group == "process" and pid else ""
    )
    share = percent(line.time_s / total_s if total_s else 0)
    spark = f" {sparkline(line.buckets, _SPARK_CELLS, len(bounds_s) - 1)}" if width >= _WIDE else ""
    figures = [quantile(line.buckets, share, bounds_s) for share in (0.5, 0.95, 0.99)]
    figures.append(longest(line.buckets, bounds_s))
    cells = " ".join(f"{span(each):>7}" for each in figures)
    return (
        f"{fit(name, _name_cells(width), middle=True)} {fit(call, 12)} {human(line.count):>6} "
        f"{span(line.time_s):>7} {share:>5}{spark} {cells}"
    )


def who(key: Key) -> str:
    """Return service and executable, once where they say the same."""
    _pid, executable, service, _call = key
    name = service.removesuffix(".service")
    return clean(executable if name in ("", "?", executable) else f"{name}/{executable}")


def _bars(line: Line, bounds_s: list[float], total_s: float) -> list[RenderableType]:
    """One line's histogram: a heading, then a bar for each doubling of the duration."""
    pid, _executable, _service, call = line.key
    share = percent(line.time_s / total_s if total_s else 0)
    name = f"{who(line.key)}{f'[{pid}]' if pid else ''} {clean(call)}"
    heading = f"{name}: {_calls([line])}, {span(line.time_s)} ({share})"
    rows = octaves(line.buckets, bounds_s)
    most = max(count for _low, _high, count in rows)
    parts: list[RenderableType] = [Text(""), Text(heading, "bold")]
    for low_s, high_s, count in rows:
        cells = max(1, round(_BAR_CELLS * count / most)) if count else 0
        parts.append(Text(f"{span(low_s):>8} to {span(high_s):<7} {'█' * cells:<{_BAR_CELLS}} {count:,}"))
    return parts
