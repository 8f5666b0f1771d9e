# SPDX-License-Identifier: Apache-2.0
"""Reads the store: page by page, whoever writes it meanwhile, and also where nobody does.

In: the state directory and a query. Out: events, oldest first. Called by `state.journal` in the agent and by
`kernob events` where none runs.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Final

from kernob.errors import StoreError
from kernob.model import Event, EventQuery, Severity
from kernob.state.store import BUSY_MS, COLUMNS, FILE_NAME, Stored, refuse_foreign
from kernob.state.text import wild

PAGE_EVENTS: Final = 500
_SEVERITY: Final = COLUMNS.index("severity")
_IDLE: Final = COLUMNS.index("idle")
_DETAILS: Final = COLUMNS.index("details")


def read(
    directory: Path, query: EventQuery, noted: Iterable[Stored] = ()
) -> Generator[list[Stored], None, None]:
    """Yield the events a query asks for, oldest first, in pages. Raises StoreError, one line.

    `noted` are events that pass the query and may not be in the file yet; those that are not count as if
    they were.
    """
    with opened(directory) as connection:
        yield from _pages(connection, query, noted)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, in a transaction of its own: one state of the file for all that follows.

    The file may be of an older version, or made and not yet filled: ask `PRAGMA user_version`. Raises
    StoreError, one line, also for what goes wrong with the connection inside.
    """
    path = directory / FILE_NAME
    try:
        with path.open("rb"):
            pass
        refuse_foreign(path)
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no {path}: no agent runs, and none has stored anything there yet"
        ) from error
    except OSError as error:
        hint = "; run as root" if isinstance(error, PermissionError) else ""
        raise StoreError(f"cannot read {path}: {error.strerror}{hint}") from error
    try:
        with contextlib.closing(_open(path)) as connection:
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as error:
        raise StoreError(f"cannot read {path}: {error}") from error


def last_number(directory: Path) -> int:
    """The greatest number any stored event has; 0 where there is none or it cannot be read."""
    with contextlib.suppress(StoreError, sqlite3.Error, OSError):
        refuse_foreign(directory / FILE_NAME)
        with contextlib.closing(_connect(directory / FILE_NAME, "mode=ro")) as connection:
            return _last_number(connection)
    return 0


def _open(path: Path) -> sqlite3.Connection:
    """A connection that has read the schema. Raises sqlite3.Error.

    A file in WAL mode needs its -shm beside it, which a read-only disk refuses to make: where nobody writes,
    the file may be read as if it never changed.
    """
    try:
        return _connect(path, "mode=ro")
    except sqlite3.OperationalError:
        wal = Path(f"{path}-wal")
        if wal.exists() and wal.stat().st_size:
            raise
        return _connect(path, "immutable=1")


def _connect(path: Path, options: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{options}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_MS / 1000)
    try:
        connection.execute("PRAGMA query_only = 1")
        connection.execute("PRAGMA cache_size = -512")  # reads the schema: what cannot be read fails here
    except BaseException:
        connection.close()
        raise
    return connection


def _last_number(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("SELECT max(id) FROM events").fetchone()
    return int(number or 0)


def _pages(
    connection: sqlite3.Connection, query: EventQuery, noted: Iterable[Stored]
) -> Iterator[list[Stored]]:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    last = _last_number(connection) if version else 0  # 0: made, and not yet filled
    unwritten = sorted((each for each in noted if each[0] > last), key=_order)[-query.limit :]
    room = query.limit - len(unwritten)
    stored = _select(connection, query, room, version) if version and room else iter(())
    page: list[Stored] = []
    for each in heapq.merge(stored, unwritten, key=_order):
        page.append(each)
        if len(page) == PAGE_EVENTS:
            yield page
            page = []
    yield page


def _order(stored: Stored) -> tuple[int, int]:
    return stored[1].time_unix_ns, stored[0]


def _select(connection: sqlite3.Connection, query: EventQuery, limit: int, version: int) -> Iterator[Stored]:
    """The last `limit` events of the file that pass, oldest first, one by one along the index of times."""
    where = "time_unix_ns >= ?"
    arguments: list[int | str] = [query.since_unix_ns]
    if query.service:
        where += " AND service GLOB ?"
        arguments.append(wild(query.service))
    if query.kinds:
        where += f" AND kind IN ({', '.join('?' * len(query.kinds))})"
        arguments += query.kinds
    first = connection.execute(
        f"SELECT time_unix_ns, id FROM events WHERE {where} "  # noqa: S608  conditions of ours
        "ORDER BY time_unix_ns DESC, id DESC LIMIT 1 OFFSET ?",
        (*arguments, limit - 1),
    ).fetchone()
    if first:
        where += " AND time_unix_ns >= ? AND (time_unix_ns > ? OR id >= ?)"
        arguments += [first[0], first[0], first[1]]
    columns = ", ".join(name if version > 1 or name != "details" else "'[]'" for name in COLUMNS)
    rows = connection.execute(
        f"SELECT id, {columns} FROM events WHERE {where} "  # noqa: S608
        "ORDER BY time_unix_ns, id",
        arguments,
    )
    return ((row[0], _event(row[1:])) for row in rows)


def _event(row: tuple[object, ...]) -> Event:
    values = list(row)
    values[_SEVERITY] = Severity(values[_SEVERITY])
    values[_IDLE] = bool(values[_IDLE])
    values[_DETAILS] = tuple((str(name), value) for name, value in json.loads(str(values[_DETAILS])))
    return Event(*values)  # type: ignore[arg-type]
