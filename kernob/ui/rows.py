# SPDX-License-Identifier: Apache-2.0
"""The table of `kernob top`: a `View` enters, the visible lines are painted, one row is selected.

Called by `ui.live`. Only lines on the screen are ever rendered, so that the number of rows costs nothing.
"""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from kernob.ui.header import empty
from kernob.ui.tables import WIDE_COLUMNS, Column, cell, fit, layout, score_colour
from kernob.view import Row, View, faults

WHEEL_ROWS = 3
OWNS_MUCH = 0.1
"""Rows with at least this share of the traffic stand out in bold."""

_COLUMN_STYLES = {"tx_rate": Style(color="cyan"), "rx_rate": Style(color="green")}
_FIGURES = frozenset(("tx_rate", "rx_rate", "tx_bytes", "rx_bytes"))
_FAILED, _RESENT = Style(color="red", bold=True), Style(color="yellow")
_PLAIN = Style()
_DIM = Style(dim=True)
_BOLD = Style(bold=True)
_SELECTED = Style(reverse=True)


class Rows(Widget, can_focus=True):
    """The rows in view and the selected one: the first, until the bar is moved; then it is followed."""

    class Moved(Message):
        """Another row is selected."""

    def __init__(self) -> None:
        super().__init__(id="rows")
        self._view: View | None = None
        self._columns: tuple[Column, ...] = ()
        self._top = 0
        self._selected = 0
        self._follows = False

    @property
    def selected(self) -> Row | None:
        """The row under the bar."""
        if self._view is None or not self._view.rows:
            return None
        return self._view.rows[self._selected]

    @property
    def visible_range(self) -> tuple[int, int]:
        """First and last visible row, counted from 1; (0, 0) without rows."""
        count = len(self._view.rows) if self._view else 0
        return (min(self._top + 1, count), min(self._top + self.size.height, count))

    def show(self, view: View) -> None:
        """Take over another view. A bar that was moved stays on its row, else it stays on top."""
        previous = self.selected
        self._view = view
        if self._follows and previous is not None:
            wanted = _identity(previous)
            found = (index for index, row in enumerate(view.rows) if _identity(row) == wanted)
            self._selected = next(found, self._selected)
        self._settle()

    def move(self, rows: int) -> None:
        """Move the bar; back on the first row it stops following."""
        self._selected += rows
        self._settle()
        self._follows = self._selected > 0
        self.refresh()
        self.post_message(self.Moved())

    def on_resize(self) -> None:
        """Lay the columns out anew."""
        self._settle()

    def on_mouse_scroll_down(self) -> None:
        """Move down."""
        self.move(WHEEL_ROWS)

    def on_mouse_scroll_up(self) -> None:
        """Move up."""
        self.move(-WHEEL_ROWS)

    def on_click(self, event: events.Click) -> None:
        """Select the row under the mouse."""
        self.move(self._top + event.y - self._selected)

    def render_line(self, y: int) -> Strip:
        """Return one line; called by textual for lines that have to be painted."""
        width = self.size.width
        if self._view is None:
            return Strip.blank(width)
        if not self._view.rows:
            return self._message_line(empty(self._view).splitlines(), y)
        index = self._top + y
        if index >= len(self._view.rows):
            return Strip.blank(width)
        # Until the bar is moved it would only hide the first row's own signs.
        selected = self._follows and index == self._selected
        return row_strip(self._view.rows[index], self._columns, width, selected=selected)

    def _message_line(self, lines: list[str], y: int) -> Strip:
        width = self.size.width
        line_number = y - max(0, (self.size.height - len(lines)) // 2)
        if not 0 <= line_number < len(lines):
            return Strip.blank(width)
        text = fit(lines[line_number], width).rstrip().center(width)
        return Strip([Segment(text, _BOLD if line_number == 0 else _PLAIN)], width)

    def _settle(self) -> None:
        if self._view is None:
            return
        count, height = len(self._view.rows), max(1, self.size.height)
        self._selected = max(0, min(self._selected, count - 1))
        lowest_top = self._selected - height + 1
        self._top = max(0, min(max(self._top, lowest_top), self._selected, max(0, count - height)))
        self._columns = layout(self.size.width, self._view.group)
        self.refresh()


def row_strip(row: Row, columns: tuple[Column, ...], width: int, *, selected: bool) -> Strip:
    """Return one row as styled text; every style also has its sign in the text (figures, bar, dagger)."""
    wide = width >= WIDE_COLUMNS
    segments = []
    for number, column in enumerate(columns):
        style = _SELECTED if selected else _style(row, column)
        if number:
            segments.append(Segment(" ", _SELECTED if selected else _PLAIN))
        segments.append(Segment(cell(row, column, wide=wide), style))
    return Strip(segments).adjust_cell_length(width, _SELECTED if selected else _PLAIN)


def _style(row: Row, column: Column) -> Style:
    if not row.alive or (column.key in _FIGURES and not getattr(row, column.key)):
        return _DIM
    if column.key == "faults":
        return _FAILED if faults(row.tcp_window) else _RESENT if row.tcp_window.retransmits else _PLAIN
    if column.key == "score":
        return _PLAIN if row.score is None else Style.parse(score_colour(row.score))
    style = _COLUMN_STYLES.get(column.key, _PLAIN)
    return style + _BOLD if row.share >= OWNS_MUCH else style


def _identity(row: Row) -> tuple[object, ...]:
    who = (row.pid, row.executable, row.service)
    return (*who, row.role, row.transport, row.address, row.port, row.peer)
