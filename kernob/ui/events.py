# SPDX-License-Identifier: Apache-2.0
"""`kernob events`: what happened to connections, one by one, printed and followed.

Events come from the running agent's socket, or where none runs straight from its store. Lines leave: on a
terminal wrapped to its width, with a line for each new day and colour by severity; into a pipe one line an
event with its date. Times are local, to the millisecond. Called by `cli`.
"""

from __future__ import annotations

import contextlib
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kernob.config import Settings
from kernob.errors import AgentUnreachableError
from kernob.model import Event, EventQuery, Severity
from kernob.ui.client import agent_listens, open_socket
from kernob.ui.page import print_page, printed_as
from kernob.view import (
    MAX_EVENTS,
    EventRequest,
    EventsEnd,
    Refusal,
    decode_event_line,
    encode_event,
    encode_event_request,
    printable,
)

EXPECTED_SINCE: Final = (
    "a time ago (90s, 10m, 2h, 3d, 1w) or a local time (02:00, 2026-11-23, 2026-11-23T02:00)"
)
DEFAULT_LIMIT: Final = 100
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO: Final = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_TIME: Final = re.compile(r"\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?", re.ASCII)
_PATIENCE_S: Final = 10.0
_CHUNK_BYTES: Final = 256 * 1024
_PAGE_EVENTS: Final = 200
_BODY_CHARS: Final = 1000
_STYLES: Final = {Severity.INFO: "cyan", Severity.WARN: "yellow", Severity.ERROR: "bold red"}

ReadStore = Callable[[Path, EventQuery], Iterator[list[Event]]]


def moment(text: str, now_s: float | None = None) -> int:
    """Return the Unix time in ns that `text` names (see EXPECTED_SINCE). Raises ValueError for others."""
    now = datetime.fromtimestamp(time.time() if now_s is None else now_s).astimezone()
    text = text.strip()
    if ago := _AGO.fullmatch(text):
        seconds = int(ago[1]) * _UNITS_S[ago[2]]
        return max(0, round((now.timestamp() - seconds) * 1e9))
    if _TIME.fullmatch(text):
        then = datetime.fromisoformat(f"{now:%Y-%m-%d}T{text}").astimezone()
        if then > now:  # 23:50, asked for at 00:10
            then = (then.replace(tzinfo=None) - timedelta(days=1)).astimezone()
    else:
        if not text.isascii() or not re.match(r"\d{4}-", text):
            raise ValueError("no date")
        then = datetime.fromisoformat(text.replace("Z", "+00:00"))
        then = then if then.tzinfo else then.astimezone()
    return max(0, round(then.timestamp() * 1e6) * 1000)


def run_events(  # noqa: PLR0913  one argument per option of the command line
    settings: Settings,
    *,
    read_store: ReadStore,
    since_unix_ns: int | None = None,
    service: str = "",
    kinds: tuple[str, ...] = (),
    limit: int | None = None,
    follow: bool = False,
    as_json: bool = False,
) -> int:
    """Print events, oldest first, and return the exit code; Ctrl-C ends it with 0.

    `read_store` reads where no agent runs. `limit` None stands for all since `since_unix_ns`, and for the
    last 100 where that is None too. Raises AgentUnreachableError, PreconditionError and StoreError.
    """
    limit = limit or (DEFAULT_LIMIT if since_unix_ns is None else MAX_EVENTS)
    query = EventQuery(since_unix_ns or 0, service, kinds, limit)
    show = _print_json if as_json else _Printer().show
    try:
        if agent_listens(settings.socket_path):
            batches = _from_agent(settings.socket_path, query, follow=follow)
        elif follow:
            where = settings.socket_path
            raise AgentUnreachableError(f"no agent answers on {where}; without --follow the store is read")
        else:
            batches = read_store(settings.state_dir, query)
        count = 0
        for batch in batches:
            count += len(batch)
            show(batch)
    except KeyboardInterrupt:
        return 0
    if not count and not as_json and sys.stdout.isatty():
        print("No such events.")
    return 0


def _from_agent(path: Path, query: EventQuery, *, follow: bool) -> Iterator[list[Event]]:
    """Yield what the agent says, in batches as they arrive, until it has said all (or for ever)."""
    request = EventRequest(
        "events",
        since_unix_ns=query.since_unix_ns,
        service=query.service,
        kinds=query.kinds,
        limit=query.limit,
        follow=follow,
    )
    with open_socket(path) as connection:
        # An agent that has hung up already may have said why: reading tells.
        with contextlib.suppress(ConnectionError):
            connection.sendall(encode_event_request(request) + b"\n")
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        rest = b""
        while True:
            if not poller.poll(None if follow else 1000 * _PATIENCE_S):
                raise AgentUnreachableError(f"the agent on {path} is silent for {_PATIENCE_S:.0f} s")
            try:
                received = connection.recv(_CHUNK_BYTES)
            except OSError as error:
                raise AgentUnreachableError(f"the agent on {path} went away: {error.strerror}") from error
            if not received:
                raise AgentUnreachableError(f"the agent on {path} went away")
            *lines, rest = (rest + received).split(b"\n")
            events, ended = _decode(path, lines)
            yield events
            if ended:
                return


def _decode(path: Path, lines: Iterable[bytes]) -> tuple[list[Event], bool]:
    events: list[Event] = []
    for line in lines:
        try:
            said = decode_event_line(line)
        except ValueError as error:
            raise AgentUnreachableError(f"cannot read the agent on {path}: {error}") from error
        if isinstance(said, Refusal):
            raise AgentUnreachableError(f"the agent on {path} refused: {said.error}")
        if isinstance(said, EventsEnd):
            return events, True
        events.append(said)
    return events, False


def _print_json(events: list[Event]) -> None:
    for event in events:
        sys.stdout.buffer.write(encode_event(event) + b"\n")
    sys.stdout.buffer.flush()


class _Printer:
    """Prints batches; remembers the day it has named last."""

    def __init__(self) -> None:
        self._day = ""

    def show(self, events: list[Event]) -> None:
        """Print them: wrapped on a terminal, one line each elsewhere."""
        if not sys.stdout.isatty():
            text = "".join(line(event) + "\n" for event in events)
            sys.stdout.write(printed_as(text))
            sys.stdout.flush()
            return
        for first in range(0, len(events), _PAGE_EVENTS):
            page = events[first : first + _PAGE_EVENTS]
            print_page(partial(self._page, page))

    def _page(self, events: list[Event], width: int) -> RenderableType:
        parts: list[RenderableType] = []
        grid: Table | None = None
        for event in events:
            day, clock = _local(event.time_unix_ns)
            if day != self._day:
                self._day, grid = day, None
                zone = datetime.fromtimestamp(event.time_unix_ns // 10**9).astimezone()
                parts.append(Text(f"{day} {zone:%Z}", style="bold"))
            if grid is None:
                grid = _grid(width)
                parts.append(grid)
            kind = Text(_short(event), style=_STYLES[event.severity])
            grid.add_row(Text(clock, style="dim"), kind, Text(_body(event)))
        return Group(*parts)


def _grid(width: int) -> Table:
    """Columns of a page; where it is too narrow for three, sentences stand in what is left."""
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(width=12, no_wrap=True)
    grid.add_column(width=14, no_wrap=True)
    grid.add_column(width=max(20, width - 30), overflow="fold")
    return grid


def line(event: Event) -> str:
    """Return an event as one line for a pipe: date, time, severity, kind, sentence."""
    day, clock = _local(event.time_unix_ns)
    return f"{day} {clock} {event.severity.value:<5} {_short(event):<14} {_body(event)}"


def _short(event: Event) -> str:
    return printable(event.kind.rpartition(".")[2])


def _body(event: Event) -> str:
    """The sentence, safe to print also where whoever filled the store was not the agent."""
    parts = (event.body[i : i + 256] for i in range(0, min(len(event.body), _BODY_CHARS), 256))
    return "".join(printable(part) for part in parts)


def _local(time_unix_ns: int) -> tuple[str, str]:
    """Return local date and time of day, cut to the millisecond."""
    seconds, rest_ns = divmod(time_unix_ns, 10**9)
    then = datetime.fromtimestamp(seconds).astimezone()
    return f"{then:%Y-%m-%d}", f"{then:%H:%M:%S}.{rest_ns // 10**6:03d}"
