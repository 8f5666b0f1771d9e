# SPDX-License-Identifier: Apache-2.0
"""The lines around the table: host and totals, who owns the network, what is lost, what is missing.

A `View` and a width enter, styled `rich` text of at most that width leaves. Called by `ui.top` and
`ui.live`. Colour only repeats what the words say; red stands for losses and failures alone.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from kernob.model import ProbeState
from kernob.ui.tables import clean, clock, duration, fit, human, percent
from kernob.view import Group, Sort, View

_SORT_NAMES = {
    Sort.RATE: "share",
    Sort.TX_RATE: "tx rate",
    Sort.RX_RATE: "rx rate",
    Sort.TOTAL: "total",
    Sort.TX_TOTAL: "tx total",
    Sort.RX_TOTAL: "rx total",
    Sort.PROCESS: "process",
    Sort.PID: "pid",
    Sort.SERVICE: "service",
    Sort.DESTINATION: "destination",
    Sort.FAULTS: "failures",
    Sort.SCORE: "score",
}
_ROW_NAMES = {
    Group.FLOW: "flows",
    Group.PROCESS: "processes",
    Group.SERVICE: "services",
    Group.DESTINATION: "destinations",
}
_GAP_CELLS = 2
_LEADER_CELLS = 36
_DIRECTIONS = {"transmit": "tx", "receive": "rx"}


TREND_CELLS = 40
_BARS = "▁▂▃▄▅▆▇█"


class Status(enum.Enum):
    """What the screen is doing; the text stands in its corner."""

    WAITING = "WAITING"
    LIVE = "LIVE"
    PAUSED = "PAUSED"
    LOST = "NO AGENT"


_STATUS_STYLES = {
    Status.WAITING: "bold",
    Status.LIVE: "bold green",
    Status.PAUSED: "bold reverse",
    Status.LOST: "bold red reverse",
}


@dataclass(frozen=True, slots=True)
class Lead:
    """Who moves most bytes; `since_unix_ns` is None where it already led when the screen came up."""

    name: str
    share: float
    since_unix_ns: int | None
    for_s: float


class History:
    """Remembers the last rates, and since when one service has owned the largest share of the network."""

    def __init__(self) -> None:
        self.lead: Lead | None = None
        self._name: str | None = None
        self._since_unix_ns = 0
        self._first_unix_ns: int | None = None
        self._last_unix_ns: int | None = None
        self._tx_rates: deque[float] = deque(maxlen=TREND_CELLS)
        self._rx_rates: deque[float] = deque(maxlen=TREND_CELLS)

    def trends(self, cells: int) -> tuple[str, str]:
        """Return the course of both rates as bars, the newest last, in exactly `cells` cells each."""
        return _bars(self._tx_rates, cells), _bars(self._rx_rates, cells)

    def observe(self, view: View) -> None:
        """Take note of one view."""
        # The same tick comes again when the query changes; it happened only once.
        if view.time_unix_ns != self._last_unix_ns:
            self._last_unix_ns = view.time_unix_ns
            self._tx_rates.append(view.total.tx_rate)
            self._rx_rates.append(view.total.rx_rate)
        if self._first_unix_ns is None:
            self._first_unix_ns = view.time_unix_ns
        if view.leader is None:
            self._name, self.lead = None, None
            return
        if view.leader.name != self._name:
            self._name = view.leader.name
            self._since_unix_ns = view.time_unix_ns
        known = self._since_unix_ns > self._first_unix_ns
        self.lead = Lead(
            view.leader.name,
            view.leader.share,
            self._since_unix_ns if known else None,
            (view.time_unix_ns - self._since_unix_ns) / 1e9,
        )


def header(view: View, history: History, status: Status | None, width: int) -> tuple[Text, Text, Text]:
    """Return the three lines above the table from a view that `history` observed; a page has no status."""
    return (
        _host_line(view, status, width),
        _total_line(view, history, status, width),
        _lead_line(view, history.lead, width),
    )


def _bars(rates: Sequence[float], cells: int) -> str:
    shown = list(rates)[-cells:] if cells > 0 else []
    top = max(shown, default=0.0)
    bars = (_BARS[round(rate / top * (len(_BARS) - 1))] if top > 0 else _BARS[0] for rate in shown)
    return "".join(bars).ljust(cells)


def _host_line(view: View, status: Status | None, width: int) -> Text:
    left = Text.assemble((" kernob", "bold"), "  ", (clean(view.host), "bold"))
    right = Text.assemble(
        (f"window {view.window_s:.3g} s  counting for {_uptime(view)}  ", "dim"),
        clock(view.time_unix_ns),
        " ",
    )
    if status is not None:
        right.append(" ").append(f" {status.value} ", _STATUS_STYLES[status])
    return _sides(left, right, width)


def _uptime(view: View) -> str:
    return duration((view.time_unix_ns - view.started_unix_ns) / 1e9)


def _total_line(view: View, history: History, status: Status | None, width: int) -> Text:
    right = Text(f"{view.total.rows:,} flows  {view.processes:,} processes ")
    left = Text()
    # What is not needed for the figures (" TX 81.2 MB/s " twice, and a gap) goes to the bars.
    cells = min(TREND_CELLS, (width - right.cell_len - 2 * 15 - _GAP_CELLS) // 2) if status else 0
    trends = history.trends(cells)
    sides = (("TX", "cyan", view.total.tx_rate), ("RX", "green", view.total.rx_rate))
    for (name, colour, rate), trend in zip(sides, trends, strict=True):
        left.append(f" {name} ", f"bold {colour}").append(human(rate, "B/s").rjust(9), "bold")
        left.append(f" {trend}" if cells > 0 else "  ", colour)
    return _sides(left, right, width)


def _lead_line(view: View, lead: Lead | None, width: int) -> Text:
    left = Text(" ")
    if lead is None:
        left.append("nobody moved a byte in this window", "dim")
    else:
        left.append("busiest ", "dim")
        left.append(f"{clean(lead.name)} {percent(lead.share)}", "bold")
        if lead.since_unix_ns is not None:
            left.append(f" since {clock(lead.since_unix_ns)}", "dim")
        elif lead.for_s > 0:
            left.append(f" for over {duration(lead.for_s)}", "dim")
    return _sides(left, health(view, width - min(_LEADER_CELLS, left.cell_len) - _GAP_CELLS), width)


def health(view: View, width: int) -> Text:
    """Say how much of the wire is explained and what is wrong; red only where something is.

    What is wrong comes first: where all does not fit into `width`, coverage goes, then the causes.
    """
    wrong = []
    failed = sum(hook.state is ProbeState.FAILED for hook in view.hooks)
    if failed:
        wrong.append(Text(f"{failed} of {len(view.hooks)} PROBES FAILED", "bold red"))
    lost = {clean(cause): count for cause, count in sorted(view.losses.items()) if count}
    explained = [Text(coverage, "dim")] if (coverage := _coverage(view)) else []
    if not lost:
        calm = [Text("lost 0", "dim")] if view.losses else []
        return _first_that_fits([[*explained, *wrong, *calm], [*wrong, *calm]], width)
    causes = ", ".join(f"{cause} {human(count)}" for cause, count in lost.items())
    in_full = Text(f"LOST {causes}", "bold red")
    in_short = Text(f"LOST {human(sum(lost.values()))}", "bold red")
    choices = [
        [*explained, *wrong, in_full],
        [*wrong, in_full],
        [*explained, *wrong, in_short],
        [*wrong, in_short],
    ]
    return _first_that_fits(choices, width)


def _first_that_fits(choices: list[list[Text]], width: int) -> Text:
    for parts in choices:
        line = Text("  ").join(parts).append(" ")
        if line.cell_len <= width:
            break
    return line


def _coverage(view: View) -> str:
    if not view.coverage:
        return ""
    lowest: dict[str, float] = {}
    for one in view.coverage:
        if one.ratio is not None:
            side = _DIRECTIONS.get(one.direction, clean(one.direction))
            lowest[side] = min(one.ratio, lowest.get(side, one.ratio))
    if not lowest:
        return "explained: too quiet to say"
    return "explained " + " ".join(f"{side} {percent(lowest[side])}" for side in sorted(lowest, reverse=True))


def position(view: View, first: int, last: int, width: int) -> Text:
    """Return the line below the rows: which of them are visible, what lies beyond, how they are ordered."""
    order = "" if not view.reverse else ", reversed"
    right = Text(f"by {_SORT_NAMES[view.sort]}{order}", "dim")
    if view.filter:
        right = Text.assemble((f"filter {clean(view.filter)[:30]}", "bold"), "  ", right)
    right.append(" ")
    name = _ROW_NAMES[view.group]
    if not view.rows:
        return _sides(Text(f" 0 {name}", "dim"), right, width)
    left = Text(f" {name} {first:,}-{last:,} of {view.matched.rows:,}", "dim")
    if view.left_out.rows:
        rest = view.left_out
        left.append(
            f"  +{rest.rows:,} more: {human(rest.tx_rate + rest.rx_rate, 'B/s')}, "
            f"{human(rest.tx_bytes + rest.rx_bytes, 'B')}",
            "bold",
        )
    return _sides(left, right, width)


def empty(view: View) -> str:
    """Say why there are no rows, and what that means."""
    if view.filter:
        return (
            f"No flow matches “{clean(view.filter)}”; {view.total.rows:,} are hidden by the filter.\n"
            "Esc shows them again."
        )
    if view.hooks and not any(hook.state is ProbeState.ATTACHED for hook in view.hooks):
        return (
            "No probe is attached, so traffic would not be seen here.\n"
            "`kernob doctor` says why, and what to do."
        )
    count = sum(hook.state is ProbeState.ATTACHED for hook in view.hooks)
    attached = f"{count} of {len(view.hooks)} probes are attached" if view.hooks else "The agent runs"
    if count < len(view.hooks):
        attached += " (see `kernob doctor`)"
    return (
        f"No process has sent or received a byte for {_uptime(view)}, since Kernob began to count.\n"
        f"{attached}; the first bytes will show here."
    )


def _sides(left: Text, right: Text, width: int) -> Text:
    """Put one text at either end of a line; where both do not fit, the left one is cut."""
    room = width - right.cell_len - _GAP_CELLS
    if room < 1:
        right.truncate(max(0, width - 1), overflow="ellipsis")
        return right
    if left.cell_len > room:
        left.truncate(room, overflow="ellipsis")
    gap = width - left.cell_len - right.cell_len
    return Text.assemble(left, fit("", gap), right, no_wrap=True)
