# SPDX-License-Identifier: Apache-2.0
"""`kernob top`: opens a feed and shows it as a screen, as one table, or as JSON lines.

Settings and options enter from `cli`; text leaves on standard output and an exit code to `cli`. The feed
is the running agent's socket; where no agent runs, one is run in this process for as long as the screen
stands. textual is only imported for the full screen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from io import TextIOWrapper

from rich.console import Group as RenderGroup
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kernob.config import Settings
from kernob.ui.client import Feed, LocalFeed, SnapshotStream, SocketFeed, agent_listens
from kernob.ui.header import History, empty, header, position
from kernob.ui.page import LOOKALIKES, print_page
from kernob.ui.tables import WIDE_COLUMNS, cell, layout, title
from kernob.view import MAX_FILTER_CHARS, MAX_ROWS, Group, Request, Sort, View, encode_view

SCREEN_ROWS = 500
PIPED_ROWS = 50
_AROUND_ROWS = 7  # lines of a printed table that are not rows


_STARTING = "starting one here; a first start compiles for this kernel."
OpenFeed = Callable[[Request], Feed]


def run_top(  # noqa: PLR0913  one argument per option of the command line
    settings: Settings,
    *,
    start_agent: Callable[[Settings], AbstractContextManager[SnapshotStream]],
    once: bool = False,
    as_json: bool = False,
    interval_s: float = 1.0,
    sort: str = "rate",
    filter_text: str = "",
    group: str = "flow",
    limit: int | None = None,
) -> int:
    """Show traffic until the user leaves (or once), and return the exit code.

    `start_agent` makes the agent of a screen that found none running. `interval_s` is 0.2..300, `limit`
    1..20000 rows (None: what fits the screen, 50 when piped, all as JSON), `sort` and `group` are values
    of `Sort` and `Group`. Without a terminal one table is printed.
    A reader of standard output that leaves ends it with BrokenPipeError, Ctrl-C with exit code 0.
    Raises AgentUnreachableError when the agent goes away (the full screen waits for it instead),
    PreconditionError and KernelError from starting an agent.
    """
    screen = not once and not as_json and _is_terminal()
    request = Request(
        interval_s=interval_s,
        sort=Sort(sort),
        group=Group(group),
        filter=filter_text[:MAX_FILTER_CHARS],
        limit=min(MAX_ROWS, limit or _default_limit(screen=screen, as_json=as_json)),
    )
    with _ended_by_signals(), contextlib.ExitStack() as stack:
        try:
            if agent_listens(settings.socket_path):
                open_feed: OpenFeed = partial(SocketFeed, settings.socket_path)
            else:
                unstarted = start_agent(settings)
                print(f"No agent answers on {settings.socket_path}: {_STARTING}", file=sys.stderr)
                agent = stack.enter_context(unstarted)
                open_feed = partial(LocalFeed, agent)
            if screen:
                return _run_screen(open_feed, request)
            feed = open_feed(request)
            stack.callback(feed.close)
            show = _print_json if as_json else _print_table
            show(_with_rates(feed.views(), interval_s), once=once or not as_json)
        except KeyboardInterrupt:
            return 0
    return 0


def table(view: View, width: int) -> RenderableType:
    """Return header, rows and what was left out, `width` cells wide, for a printed page."""
    columns = layout(width, view.group)
    grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(Text(title(column, view)), width=column.width, no_wrap=True)
    for row in view.rows:
        texts = (Text(cell(row, column, wide=width >= WIDE_COLUMNS)) for column in columns)
        grid.add_row(*texts, style="" if row.alive else "dim")
    history = History()
    history.observe(view)
    above = header(view, history, None, width)
    if not view.rows:
        return RenderGroup(*above, Text(""), Text(empty(view)))
    return RenderGroup(*above, Text(""), grid, position(view, 1, len(view.rows), width))


def _print_json(views: Iterator[View], *, once: bool) -> None:
    for view in views:
        sys.stdout.buffer.write(encode_view(view) + b"\n")
        sys.stdout.buffer.flush()
        if once:
            return


def _print_table(views: Iterator[View], *, once: bool) -> None:
    for view in views:
        print_page(partial(table, view))
        if once:
            return


def _with_rates(views: Iterator[View], interval_s: float) -> Iterator[View]:
    """Skip what an agent says before it has counted for an interval (a tick may come a little early)."""
    for view in views:
        if view.time_unix_ns - view.started_unix_ns > 0.8 * interval_s * 1e9:
            yield view


def _run_screen(open_feed: OpenFeed, request: Request) -> int:
    from kernob.ui.live import TopApp

    with _on_terminal(), _logging_held_back():
        app = TopApp(open_feed, request)
        app.run()
    if app.failure is not None:
        raise app.failure
    return app.return_code or 0


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _default_limit(*, screen: bool, as_json: bool) -> int:
    if as_json:
        return MAX_ROWS
    if screen:
        return SCREEN_ROWS
    if not sys.stdout.isatty():
        return PIPED_ROWS
    return max(10, shutil.get_terminal_size().lines - _AROUND_ROWS)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and a lost terminal end the program the way Ctrl-C does, cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _on_terminal() -> Iterator[None]:
    """Let textual, which paints on the original standard error, paint on the terminal in any case."""
    original = sys.__stderr__
    if original is not None and not original.isatty():
        sys.__stderr__ = sys.__stdout__  # type: ignore[misc]
    if isinstance(sys.__stderr__, TextIOWrapper):  # else textual's frames say \\u2588 on such a terminal
        sys.__stderr__.reconfigure(errors=LOOKALIKES)
    try:
        yield
    finally:
        sys.__stderr__ = original  # type: ignore[misc]


class _Held(logging.Handler):
    """Keeps the last records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=200)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


@contextlib.contextmanager
def _logging_held_back() -> Iterator[None]:
    """Keep log lines of an agent in this process off the screen; they are written when it closes."""
    root = logging.getLogger()
    handlers, held = root.handlers[:], _Held()
    root.handlers[:] = [held]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for record in held.records:
            root.handle(record)
