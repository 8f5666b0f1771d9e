# SPDX-License-Identifier: Apache-2.0
"""What screens say, as pure functions: a `View` and a width enter, text of exactly that width leaves.

Called by `ui.top` (one rich table) and `ui.live` (the full screen); both show the same columns. Whatever
a process chose itself (names) is neutralised and cut here again, although the agent did so before, and
no string is ever read as markup.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from rich.cells import cell_len, set_cell_size

from kernob.model import TcpFacts
from kernob.view import Group, Row, Sort, View, faults, printable

WIDE_COLUMNS = 104
"""From this width on there is room for a service column, a bar and units."""

_STEPS = ("", "k", "M", "G", "T", "P", "E")
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_BAR_CELLS = 8
_ARROWS = {"client": "→", "server": "←", "unknown": "·"}
_RISING_SORTS = frozenset((Sort.PROCESS, Sort.PID, Sort.SERVICE, Sort.DESTINATION, Sort.SCORE))


def human(value: float, unit: str = "") -> str:
    """Return bytes in three digits with an SI prefix (k = 1000): at most 5 characters without a unit.

    >>> human(0), human(0.4), human(999), human(999.6), human(81_240_000), human(1_500, "B/s")
    ('0', '<1', '999', '1.00k', '81.2M', '1.50 kB/s')
    """
    if 0 < value < 1:
        number, step = "<1", 0
    else:
        step = 0
        # 999.5 would be rounded up to a fourth digit.
        while value >= 999.5 and step < len(_STEPS) - 1:
            value /= 1000
            step += 1
        decimals = 0 if step == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
        number = f"{value:.{decimals}f}"
    return f"{number} {_STEPS[step]}{unit}" if unit else f"{number}{_STEPS[step]}"


def percent(share: float) -> str:
    """Return a share (0..1) in at most 4 characters; something is never shown as nothing."""
    figure = f"{share * 100:.0f}%"
    return "<1%" if share > 0 and figure == "0%" else figure


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units.

    >>> duration(42), duration(252), duration(3 * 86400 + 4 * 3600 + 59)
    ('42s', '4m 12s', '3d 4h')
    """
    rest = max(0, int(seconds))
    parts: list[str] = []
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if rest >= size or (parts and len(parts) < 2):
            parts.append(f"{rest // size}{letter}")
        rest %= size
    return " ".join(parts[:2]) or "0s"


def clock(unix_ns: int, zone: timezone | None = None) -> str:
    """Return HH:MM:SS of a Unix time in `zone` (None: this machine's own)."""
    return datetime.fromtimestamp(unix_ns // 10**9, tz=timezone.utc).astimezone(zone).strftime("%H:%M:%S")


def clean(text: str) -> str:
    """Return `text` as at most 256 visible characters that each take up room on a screen."""
    text = printable(text)
    if text.isascii():
        return text
    return "".join(letter for letter in unicodedata.normalize("NFC", text) if cell_len(letter))


def fit(text: str, width: int, *, right: bool = False, middle: bool = False) -> str:
    """Return `text` in exactly `width` cells (wide characters take two), cut with "…" or padded.

    `middle` cuts out of the middle, so that an address keeps its port.
    """
    text = clean(text)
    length = cell_len(text)
    if length > width:
        if width <= 0:
            return ""
        tail_cells = (width - 1) // 2 if middle else 0
        tail = _last_cells(text, tail_cells)
        text = set_cell_size(text, width - 1 - cell_len(tail)).rstrip() + "…" + tail
        length = cell_len(text)
    padding = " " * (width - length)
    return padding + text if right else text + padding


def _last_cells(text: str, cells: int) -> str:
    start = len(text)
    while start > 0 and cell_len(text[start - 1 :]) <= cells:
        start -= 1
    return text[start:]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its cells are `width` cells wide; `sorts` are the orders that mark its title."""

    key: str
    title: str
    width: int
    right: bool = False
    sorts: tuple[Sort, ...] = ()
    weight: int = 0


def layout(width: int, group: Group) -> tuple[Column, ...]:
    """Choose the columns for a screen `width` cells wide; with one blank between them they fill it.

    Names take what is left; where that is too little for them, totals go, then failures, then scores.
    """
    wide = width >= WIDE_COLUMNS
    number = 7 if wide else 5
    share = Column("share", "SHARE", 6 + (_BAR_CELLS + 1 if wide else 0), True, (Sort.RATE,))
    figures = [
        Column("tx_rate", "TX/s", number, True, (Sort.TX_RATE,)),
        Column("rx_rate", "RX/s", number, True, (Sort.RX_RATE,)),
        Column("tx_bytes", "TX", number, True, (Sort.TX_TOTAL, Sort.TOTAL)),
        Column("rx_bytes", "RX", number, True, (Sort.RX_TOTAL, Sort.TOTAL)),
    ]
    happened = Column("faults", "FAIL", 5, True, (Sort.FAULTS,))
    scored = Column("score", "SCORE", 6, True, (Sort.SCORE,))
    columns = [share, *_names(group, wide=wide), scored, happened, *figures]
    if _needed(columns) > width:
        columns = columns[:-2]
    for least in (happened, scored):
        if _needed(columns) > width:
            columns.remove(least)
    spare = max(0, width - _needed(columns))
    weights = sum(column.weight for column in columns)
    resolved = []
    for column in columns:
        extra = spare * column.weight // weights if column.weight else 0
        spare -= extra
        weights -= column.weight
        resolved.append(replace(column, width=column.width + extra))
    return tuple(resolved)


def _needed(columns: list[Column]) -> int:
    return sum(column.width for column in columns) + len(columns) - 1


def _names(group: Group, *, wide: bool) -> list[Column]:
    pid = Column("pid", "PID ", 8, True, (Sort.PID,))
    flows = Column("flows", "FLOWS", 6, True)
    service = Column("service", "SERVICE", 12, sorts=(Sort.SERVICE,), weight=3)
    destination = Column("destination", "DESTINATION", 18, sorts=(Sort.DESTINATION,), weight=5)
    if wide:
        process = [Column("executable", "PROCESS", 12, sorts=(Sort.PROCESS,), weight=2), pid, service]
    else:
        both = Column("who", "SERVICE/PROC", 12, sorts=(Sort.PROCESS, Sort.SERVICE), weight=2)
        process = [both, pid]
    return {
        Group.FLOW: [*process, destination],
        Group.PROCESS: [*process, flows],
        Group.SERVICE: [service, flows],
        Group.DESTINATION: [destination, Column("peer_class", "CLASS", 11), flows],
    }[group]


def title(column: Column, view: View) -> str:
    """Return the column's heading, marked with ▼ (falling) or ▲ where the rows are ordered by it."""
    if view.sort not in column.sorts:
        return fit(column.title, column.width, right=column.right)
    arrow = "▼" if (view.sort not in _RISING_SORTS) != view.reverse else "▲"
    if column.right:
        return fit(arrow + column.title, column.width, right=True)
    return fit(column.title[: column.width - 1] + arrow, column.width)


def cell(row: Row, column: Column, *, wide: bool) -> str:
    """Return the row's text in the column, in exactly the column's width."""
    if column.key == "share":
        return _share(row.share, column.width)
    if column.key in {"tx_rate", "rx_rate", "tx_bytes", "rx_bytes"}:
        return fit(human(getattr(row, column.key), "B" if wide else ""), column.width, right=True)
    if column.key == "faults":
        return fit(faults_mark(row.tcp_window), column.width, right=True)
    if column.key == "score":
        return fit("" if row.score is None else score_text(row.score), column.width, right=True)
    text = _TEXTS[column.key](row)
    return fit(text, column.width, right=column.right, middle=column.key == "destination")


def score_text(score: float) -> str:
    """Return a score in two digits; only what is perfect is 1.

    >>> score_text(0.412), score_text(0.996), score_text(1.0)
    ('0.41', '0.99', '1.00')
    """
    return f"{min(score, 0.99) if score < 1 else 1:.2f}"


def score_colour(score: float) -> str:
    """Return the name of a score's colour: what is bad is red, what is getting so yellow."""
    return "bold red" if score < 0.5 else "yellow" if score < 0.9 else "green"


def faults_mark(facts: TcpFacts) -> str:
    """Return what went wrong on connections: ✗ and how often, else ↻ and the segments sent again.

    >>> faults_mark(TcpFacts(failed=2, drops=1)), faults_mark(TcpFacts(retransmits=1234))
    ('✗3', '↻1k')
    """
    if faults(facts):
        return f"✗{_short(faults(facts))}"
    return f"↻{_short(facts.retransmits)}" if facts.retransmits else ""


def _short(count: int) -> str:
    """A count in at most 4 characters, rounded down."""
    for step, letter in ((10**9, "G"), (10**6, "M"), (1000, "k")):
        if count >= step:
            return f"{count // step}{letter}"
    return str(count)


def _share(share: float, width: int) -> str:
    figure = percent(share)
    if width <= _BAR_CELLS:
        return figure.rjust(width)
    eighths = round(min(1.0, share) * _BAR_CELLS * 8)
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return bar.ljust(_BAR_CELLS) + figure.rjust(width - _BAR_CELLS)


def who(row: Row) -> str:
    """Return service and executable in one name, the service first; once where they say the same."""
    service = row.service.removesuffix(".service")
    if not service or service == row.executable:
        return row.executable or service
    return f"{service}/{row.executable}" if row.executable else service


def destination(row: Row) -> str:
    """Return whom the row talks to: → for one we connected to, ← for one that connected to us."""
    suffix = " udp" if row.transport == "udp" else ""
    if not row.address and not row.port:
        return "udp, no address" if row.transport == "udp" else "no address"
    arrow = _ARROWS.get(row.role, "·")
    if row.role != "server":
        return f"{arrow}{_host(row.address)}:{row.port}{suffix}"
    if row.peer:
        return f"{arrow}{row.peer} :{row.port}{suffix}"
    return f"{arrow} :{row.port}{suffix} on {_host(row.address)}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


_TEXTS: dict[str, Callable[[Row], str]] = {
    "who": who,
    "executable": lambda row: row.executable,
    "service": lambda row: row.service,
    # The dagger takes a blank's place, so that digits stay in line.
    "pid": lambda row: f"{row.pid}{' ' if row.alive else '†'}",
    "flows": lambda row: f"{row.flows:,}",
    "destination": destination,
    "peer_class": lambda row: "" if row.peer_class == "unknown" else row.peer_class,
}


def _happened(row: Row) -> list[str]:
    """What happened to the row's connections since it is known, in words."""
    facts = row.tcp
    named = (
        (facts.connections, "connections"),
        (facts.failed, "failed"),
        (facts.drops, "dropped"),
        (facts.resets, "resets"),
        (facts.retransmits, "segments resent"),
    )
    said = ", ".join(f"{count:,} {name}" for count, name in named if count)
    return [said] if said else []


def describe(row: Row) -> str:
    """Return everything the row says about who and whom, uncut: the line under the table."""
    parts = []
    if row.executable:
        parts.append(f"{clean(row.executable)}[{row.pid}]{'' if row.alive else ' (ended)'}")
    if row.service and row.service != row.executable:
        parts.append(f"service {clean(row.service)}")
    if row.address or row.port or row.transport:
        known = "" if row.peer_class == "unknown" else f" ({row.peer_class})"
        side = f" {row.role}" if row.role != "unknown" else ""
        local = f" at {_host(row.address)}" if row.role == "server" and row.peer else ""
        whom = clean(destination(row).removesuffix(" udp").removeprefix("udp, "))
        parts.append(f"{row.transport}{side} {whom}{local}{known}")
    parts += _happened(row)
    if row.score is not None:
        parts.append(f"score {score_text(row.score)}")
    if row.flows > 1:
        parts.append(f"{row.flows:,} flows")
    return "  ".join(parts)
