# SPDX-License-Identifier: Apache-2.0
"""The full screen of `kernob top`: views enter from a feed's thread, keys change what is asked of it.

Called by `ui.top`. The screen holds no figures of its own: sorting, filtering, grouping and pausing are
questions to the feed, so that they are right for all flows and not only for those in view. It paints
with the terminal's own 16 colours and background, and only what changed.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from kernob.errors import AgentUnreachableError
from kernob.ui.client import Feed
from kernob.ui.header import History, Status, header, position
from kernob.ui.rows import Rows
from kernob.ui.tables import clean, describe, layout, title
from kernob.view import MAX_FILTER_CHARS, Group, Request, Sort, View

RETRY_S = 1.0
_GROUPS = list(Group)
_SORTS = list(Sort)
_KEYS = (
    ("s", "Sort"),
    ("r", "Reverse"),
    ("g", "Group"),
    ("/", "Filter"),
    ("p", "Pause"),
    ("?", "Help"),
    ("q", "Quit"),
)
_FILTER_HINT = "words that must all occur; Enter keeps them, Esc shows all"
_HELP = """\
 s S        order by the next, the previous of
 1 ... 0    1 share    2 tx/s   3 rx/s   4 total    5 tx total
            6 rx total 7 process 8 pid   9 service  0 destination
            f failures w worst score
 r          reverse the order
 g G        one row is: a flow, a process, a service, a destination
 /          filter: words that must all occur in name, PID, service,
            address, port, class, role or transport; Esc shows all
 p space    pause: figures stand still, all other keys still work
 ↑ ↓ j k PgUp PgDn Home End    move; the line below tells the rest
 q Ctrl-C   quit

 SHARE      of all bytes this host's processes moved in the window
 TX/s RX/s  bytes per second in the window; TX RX since first seen
 FAIL ✗     failed, reset or cut off in the window; ↻ segments resent
 SCORE      how well it serves, 1 is healthy; why: kernob score HOST
 →  we connected there    ←  it connected to us    †  process ended
 k M G      1000, 1000 k, 1000 M
 red        figures are incomplete: lost events, failed probes\
"""


class Arrived(Message):
    """A view came from the feed."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view


class Lost(Message):
    """The agent went away; the feed is being opened again."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class Ended(Message):
    """There will be no more views: the agent in this process ended, or failed with `error`."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error


class Help(ModalScreen[None]):
    """The keys, and what the columns mean."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,h,enter,space", "dismiss", show=False)
    ]

    def compose(self) -> ComposeResult:
        """Lay out one box, in the middle."""
        with Vertical() as box:
            box.border_title = "kernob top"
            yield Static(_HELP, markup=False)


class FilterInput(Input):
    """The line where the filter is typed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.clear_filter", show=False),
        Binding("up,down", "app.keep_filter", show=False),
    ]


class TopApp(App[int]):
    """`kernob top` on a terminal.

    `open_feed` may raise AgentUnreachableError; it is called again every `retry_s` then. After
    `run()`, `failure` says what ended the screen; None: the user.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen, ModalScreen { background: ansi_default; color: ansi_default; }
    Screen { overflow: hidden; }
    Rows { height: 1fr; }
    Static { height: 1; width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
    #header { height: 4; }
    #filter { height: 1; display: none; }
    #prompt { width: 3; text-style: bold; }
    FilterInput, FilterInput:focus {
        height: 1; width: 1fr; border: none; padding: 0; background: ansi_default; color: ansi_default;
    }
    Help { align: center middle; }
    Help > Vertical { width: 72; height: auto; border: round ansi_default; background: ansi_default; }
    Help Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", show=False),
        Binding("ctrl+c,ctrl+q", "leave", show=False, priority=True),
        Binding("s", "sort(1)", show=False),
        Binding("S", "sort(-1)", show=False),
        Binding("f", "sort_by('faults')", show=False),
        Binding("w", "sort_by('score')", show=False),
        *(
            Binding(str((n + 1) % 10), f"sort_by('{sort.value}')", show=False)
            for n, sort in enumerate(_SORTS[:10])
        ),
        Binding("r", "reverse", show=False),
        Binding("g", "group(1)", show=False),
        Binding("G", "group(-1)", show=False),
        Binding("slash", "edit_filter", show=False),
        Binding("escape", "clear_filter", show=False),
        Binding("p,space", "pause", show=False),
        Binding("question_mark,h", "help", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "move(-1000000)", show=False),
        Binding("end", "move(1000000)", show=False),
        Binding("ctrl+z", "suspend_process", show=False),
    ]

    def __init__(
        self,
        open_feed: Callable[[Request], Feed],
        request: Request,
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        super().__init__(ansi_color=True)
        self.failure: Exception | None = None
        self._open_feed = open_feed
        self._request = request
        self._retry_s = retry_s
        self._feed: Feed | None = None
        self._view: View | None = None
        self._trouble = ""
        self._history = History()
        self._stop = threading.Event()
        self._rows = Rows()

    def compose(self) -> ComposeResult:
        """Lay out header with titles, rows, position, detail or filter, and keys, top to bottom."""
        yield Static(id="header", markup=False)
        yield self._rows
        yield Static(id="position", markup=False)
        yield Static(id="detail", markup=False)
        with Horizontal(id="filter"):
            yield Static(" /", id="prompt", markup=False)
            yield FilterInput(self._request.filter, placeholder=_FILTER_HINT, max_length=MAX_FILTER_CHARS)
        yield Static(id="keys", markup=False)

    def on_mount(self) -> None:
        """Start following the feed; a signal ends the screen like the key does."""
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self.action_leave)
        self._rows.focus()
        self._paint()
        # Not a worker: textual waits for those at exit, and this one may sit in a read.
        threading.Thread(target=self._follow, name="kernob-top", daemon=True).start()

    def on_unmount(self) -> None:
        """Let the feed's thread go."""
        self._stop.set()
        if self._feed is not None:
            self._feed.close()

    def _follow(self) -> None:
        """Run in a thread of its own: hand every view over, and open the feed again when it breaks."""
        while not self._stop.is_set():
            try:
                self._feed = self._open_feed(self._request)
                for view in self._feed.views():
                    self.post_message(Arrived(view))
                self.post_message(Ended(None))
            except AgentUnreachableError as error:
                self.post_message(Lost(str(error)))
                self._stop.wait(self._retry_s)
            except Exception as error:
                self.post_message(Ended(error))  # shown by whoever runs the screen
                return
            else:
                return

    def on_arrived(self, message: Arrived) -> None:
        """Show a view."""
        self._view = message.view
        self._trouble = ""
        self._history.observe(message.view)
        self._rows.show(message.view)
        self._paint()

    def on_rows_moved(self) -> None:
        """Tell of the row that is selected now."""
        self._paint()

    def on_lost(self, message: Lost) -> None:
        """Keep the last figures, and say that they are old."""
        self._trouble = message.reason
        self._paint()

    def on_ended(self, message: Ended) -> None:
        """Leave; `failure` says why."""
        self.failure = message.error
        self.exit(0)

    def on_resize(self) -> None:
        """Fit every line to the new width."""
        self.call_after_refresh(self._paint)

    def _paint(self) -> None:
        width = self.size.width
        view = self._view
        if view is None:
            waiting = f" Waiting for the first window ({self._request.interval_s:g} s) ..."
            self._line("header", Text(self._trouble_text() or waiting))
        else:
            columns = layout(width, view.group)
            titles = Text(" ".join(title(column, view) for column in columns), "bold reverse")
            titles.pad_right(max(0, width - titles.cell_len))
            self._line(
                "header", Text("\n").join([*header(view, self._history, self._status(), width), titles])
            )
            self._line("position", position(view, *self._rows.visible_range, width))
            selected = self._rows.selected
            detail = Text(f" {describe(selected)}" if selected else "")
            trouble = Text(self._trouble_text(), "bold red")
            self._line("detail", trouble if self._trouble else detail)
        self._line("keys", _keys(self._status()))

    def _line(self, name: str, text: Text) -> None:
        text.no_wrap = True
        text.overflow = "ellipsis"
        self.screen_stack[0].query_one(f"#{name}", Static).update(text)

    def _trouble_text(self) -> str:
        return f" {clean(self._trouble)}; trying again" if self._trouble else ""

    def _status(self) -> Status:
        if self._trouble:
            return Status.LOST
        if self._request.hold:
            return Status.PAUSED
        return Status.LIVE if self._view else Status.WAITING

    def _ask(self, request: Request) -> None:
        self._request = request
        if self._feed is not None:
            self._feed.ask(request)
        self._paint()

    def action_leave(self) -> None:
        """Quit."""
        self.exit(0)

    def action_sort(self, step: int) -> None:
        """Order by the next key."""
        position_now = _SORTS.index(self._request.sort)
        self.action_sort_by(_SORTS[(position_now + step) % len(_SORTS)].value)

    def action_sort_by(self, value: str) -> None:
        """Order by one key, in its natural direction."""
        self._ask(replace(self._request, sort=Sort(value), reverse=False))

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._ask(replace(self._request, reverse=not self._request.reverse))

    def action_group(self, step: int) -> None:
        """Change what a row stands for."""
        position_now = _GROUPS.index(self._request.group)
        self._ask(replace(self._request, group=_GROUPS[(position_now + step) % len(_GROUPS)]))

    def action_pause(self) -> None:
        """Hold the figures, or let them go on."""
        self._ask(replace(self._request, hold=not self._request.hold))

    def action_move(self, rows: int) -> None:
        """Move the bar."""
        self._rows.move(rows)

    def action_page(self, pages: int) -> None:
        """Move the bar by a screenful."""
        self.action_move(pages * max(1, self._rows.size.height - 1))

    def action_help(self) -> None:
        """Explain keys and columns."""
        self.push_screen(Help())

    def action_edit_filter(self) -> None:
        """Open the line where the filter is typed, in the place of the detail line."""
        self._show_filter(shown=True)
        self.query_one(FilterInput).focus()

    def action_keep_filter(self) -> None:
        """Close that line; the filter stays."""
        self._show_filter(shown=False)
        self._rows.focus()

    def action_clear_filter(self) -> None:
        """Close that line and show everything."""
        self.query_one(FilterInput).value = ""
        self.action_keep_filter()

    def _show_filter(self, *, shown: bool) -> None:
        self.query_one("#filter").display = shown
        self.query_one("#detail", Static).display = not shown

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        if event.value != self._request.filter:
            self._ask(replace(self._request, filter=event.value))

    def on_input_submitted(self) -> None:
        """Enter keeps the filter."""
        self.action_keep_filter()


def _keys(status: Status) -> Text:
    line = Text(" ")
    for key, name in _KEYS:
        shown = "Resume" if name == "Pause" and status is Status.PAUSED else name
        line.append(key, "bold").append(f" {shown}   ")
    return line
