# SPDX-License-Identifier: Apache-2.0
"""`kernob scores` and `kernob score HOST`: how well destinations serve, and why.

In: the agent's reports `scores` and `score` (docs/scores.md), fetched anew for each page. Out: a table, worst
first, or one score line by line. Called by `commands.scores`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kernob.config import Settings
from kernob.ui.client import fetch_report
from kernob.ui.page import print_page
from kernob.ui.tables import duration, score_colour, score_text
from kernob.view import printable

_SHORT: Final = {
    "reliability": "REL",
    "latency": "LAT",
    "stability": "STAB",
    "packet_health": "PKT",
    "responsiveness": "RESP",
}
_TITLES: Final = {
    "reliability": "reliability",
    "latency": "latency",
    "stability": "stability",
    "packet_health": "packet health",
    "responsiveness": "responsiveness",
}
_COUNTED: Final = {
    "reliability": ("attempts to connect", "failed"),
    "stability": ("exchanges", "dropped"),
    "packet_health": ("data segments", "sent again"),
    "responsiveness": ("exchanges", "silent"),
}
_NARROW: Final = 100
_CLEAR: Final = "\x1b[H\x1b[2J"


def run_scores(settings: Settings, *, as_json: bool, watch_s: float | None, limit: int) -> int:
    """Print the table, or again and again until Ctrl-C. Raises AgentUnreachableError, PreconditionError."""
    try:
        while True:
            document = fetch_report(settings.socket_path, "scores")
            if as_json:
                sys.stdout.write(json.dumps(document) + "\n")
                sys.stdout.flush()
            else:
                if watch_s is not None and sys.stdout.isatty():
                    sys.stdout.write(_CLEAR)
                print_page(partial(scores_page, document, limit))
            if watch_s is None:
                return 0
            time.sleep(watch_s)
    except KeyboardInterrupt:
        return 0


def run_score(settings: Settings, host: str, *, as_json: bool) -> int:
    """Print how the score of one destination comes about. Raises as above; KernobError for an unknown one."""
    document = fetch_report(settings.socket_path, "score", {"host": host})
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        print_page(partial(score_page, document))
    return 0


def _number(value: float | None) -> Text:
    """A score in two digits; what is bad is red, what is getting so yellow, what is unknown a dot."""
    if value is None:
        return Text("·", style="dim", justify="right")
    return Text(score_text(value), style=score_colour(value), justify="right")


def _when(seconds: float | None, *, wide: bool) -> str:
    """How long ago a Unix time is and, where there is room, the local time of day."""
    if seconds is None:
        return ""
    now_s = time.time()
    ago = f"{duration(now_s - seconds)} ago"
    if not wide:
        return ago
    then = datetime.fromtimestamp(seconds).astimezone()
    today = datetime.fromtimestamp(now_s).astimezone().date() == then.date()
    return f"{then:%H:%M:%S %Z} ({ago})" if today else f"{then:%m-%d %H:%M %Z} ({ago})"


def _where(row: Mapping[str, Any]) -> str:
    address = str(row["address"])
    host = f"[{address}]" if ":" in address else address
    return f"{printable(host)}:{int(row['port'])}"


def _why(row: Mapping[str, Any]) -> Text:
    """What failed most often, and how often; first of all what fails at this moment."""
    text = Text()
    if row["failing_now"]:
        text.append(f"FAILING NOW: {int(row['failing_now'])} waiting", style="bold red")
    for reason, count in list(row["reasons"].items())[:1]:
        text.append("  " if text else "")
        text.append(f"{printable(str(reason)).replace('_', ' ')} x{int(count)}")
    return text


def scores_page(document: Mapping[str, Any], limit: int, width: int) -> RenderableType:
    """The table of all dependencies, worst first."""
    rows = document["dependencies"]
    if not rows:
        return Text("No service here has connected anywhere yet that could be scored.")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("SCORE", justify="right", no_wrap=True)
    table.add_column("SERVICE", no_wrap=True, max_width=24)
    table.add_column("DESTINATION", no_wrap=True, overflow="ellipsis", ratio=1)
    wide = width >= _NARROW
    if wide:
        for short in _SHORT.values():
            table.add_column(short, justify="right", no_wrap=True)
    table.add_column("WHY", no_wrap=True, overflow="ellipsis")
    table.add_column("LAST FAILURE", no_wrap=True)
    for row in rows[:limit]:
        score = row["score"]
        each = [_number(score[name]) for name in _SHORT] if wide else []
        when = _when(row["last_failure_unix_s"], wide=wide)
        service = Text(printable(str(row["service"])))
        table.add_row(_number(score["composite"]), service, _where(row), *each, _why(row), when)
    parts: list[RenderableType] = [table]
    left = len(rows) - limit + int(document["left_out"]) if len(rows) > limit else int(document["left_out"])
    if left > 0:
        parts.append(Text(f"and {left} more", style="dim"))
    parts.append(
        Text(
            f"window {duration(document['window_s'])}, half-life {duration(document['half_life_s'])}; "
            "· not enough samples; kernob score HOST explains one",
            style="dim",
        )
    )
    return Group(*parts)


def score_page(document: Mapping[str, Any], _width: int) -> RenderableType:
    """Each dependency on a destination, dimension by dimension."""
    parts: list[RenderableType] = []
    for row in document["dependencies"]:
        if parts:
            parts.append(Text())
        parts += _explained(row, document)
    return Group(*parts)


def _explained(row: Mapping[str, Any], document: Mapping[str, Any]) -> list[RenderableType]:
    title = Text(f"{printable(str(row['service']))} → {_where(row)}  ", style="bold")
    composite = row["score"]["composite"]
    title.append_text(Text("no score yet", style="dim") if composite is None else _number(composite))
    lines: list[RenderableType] = [title]
    if row["failing_now"]:
        count = int(row["failing_now"])
        lines.append(Text(f"  FAILING NOW: {count} SYN sent again and unanswered", style="bold red"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column()
    for line in row["dimensions"]:
        weight = f"^{line['share']:.2f}" if line["share"] else ""
        grid.add_row(f"  {_TITLES[line['name']]}", _number(line["score"]), weight, Text(_reading(line)))
    lines.append(grid)
    if composite is not None:
        factors = [line for line in row["dimensions"] if line["share"]]
        product = " x ".join(f"{max(line['score'], 0.01):.2f}^{line['share']:.2f}" for line in factors)
        lines.append(Text(f"  = {product} = {composite:.2f}", style="dim"))
    if row["reasons"]:
        said = ", ".join(
            f"{printable(str(r)).replace('_', ' ')} x{int(n)}" for r, n in row["reasons"].items()
        )
        lines.append(Text(f"  failures: {said}; the last at {_when(row['last_failure_unix_s'], wide=True)}"))
    half = duration(document["half_life_s"])
    bad = [line for line in row["dimensions"] if line["score"] is not None and line["score"] < 1]
    lines += [
        Text(
            f"  {_TITLES[line['name']]} is 1 again in {duration(line['clear_in_s'])} if nothing more fails; "
            f"what failed weighs half every {half}"
        )
        for line in bad
        if line["clear_in_s"]
    ]
    return lines


def _reading(line: Mapping[str, Any]) -> str:
    """One dimension's inputs in words."""
    if line["name"] == "latency":
        return "; ".join(
            text
            for kind, each in line["durations"].items()
            if (text := _timed(kind, each, line["min_samples"]))
        )
    whole, bad = _COUNTED[line["name"]]
    if line["samples"] < line["min_samples"]:
        return f"{line['total']} {whole}: needs {line['min_samples']}"
    text = f"{line['bad']} of {line['total']} {whole} {bad}"
    if line["bad"]:
        share = line["weighted_bad"] / line["weighted_total"] if line["weighted_total"] else 0.0
        text += f"; {share:.2%} by weight"
    return text


def _timed(kind: str, each: Mapping[str, Any], fewest: int) -> str:
    if each["samples"] < fewest:
        return f"{each['samples']} {kind}s: needs {fewest}"
    if each["baseline_s"] is None:
        return f"{kind} p95 {_short_time(each['p95_s'])}: nothing to compare with yet"
    name = "objective" if each["objective"] else "usual"
    fall = f", 0 from {_short_time(each['bad_s'])}" if each["bad_s"] > each["good_s"] else ", 0 beyond"
    return (
        f"{kind} p95 {_short_time(each['p95_s'])}, {name} {_short_time(each['baseline_s'])}: 1 up to "
        f"{_short_time(each['good_s'])}{fall}"
    )


def _short_time(seconds: float) -> str:
    """A length of time in three digits.

    >>> _short_time(0.000_051), _short_time(0.0234), _short_time(3.21)
    ('0.051 ms', '23.4 ms', '3.21 s')
    """
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
