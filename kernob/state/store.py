# SPDX-License-Identifier: Apache-2.0
"""What must outlive a restart: one SQLite file in the state directory. docs/store.md describes it.

In: events, and whatever else `stage` is given, from the tick thread. `state.history` reads it again.
Writing happens in a thread of its own, one transaction a tick, so that a slow or full disk holds nothing up.
Whatever goes wrong with the file, the agent goes on: it says so once, in one line, and tries again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from kernob.errors import StoreError
from kernob.model import Event
from kernob.state.map_schema import SCHEMA as MAP_SCHEMA

_log = logging.getLogger(__name__)

FILE_NAME: Final = "kernob.db"
_APPLICATION_ID: Final = 0x4B524E42  # "KRNB"
_PENDING_MOST: Final = 10_000
_STAGED_MOST: Final = 200
_REOPEN_S: Final = 60.0
BUSY_MS: Final = 2_000
_DAMAGED_KEPT: Final = 3

# Each entry takes the schema from the version of its index to the next. Never change one that was released.
MIGRATIONS: Final = (
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        time_unix_ns INTEGER NOT NULL,
        kind TEXT NOT NULL,
        severity TEXT NOT NULL,
        service TEXT NOT NULL,
        body TEXT NOT NULL,
        executable TEXT NOT NULL,
        pid INTEGER NOT NULL,
        start_ticks INTEGER NOT NULL,
        role TEXT NOT NULL,
        address TEXT NOT NULL,
        port INTEGER NOT NULL,
        peer TEXT NOT NULL,
        peer_port INTEGER NOT NULL,
        local_port INTEGER NOT NULL,
        reason TEXT NOT NULL,
        closed_by TEXT NOT NULL,
        direction TEXT NOT NULL,
        idle INTEGER NOT NULL,
        count INTEGER NOT NULL,
        tx_bytes INTEGER NOT NULL,
        rx_bytes INTEGER NOT NULL,
        age_s REAL NOT NULL,
        gap_s REAL NOT NULL,
        first_unix_ns INTEGER NOT NULL,
        suppressed INTEGER NOT NULL
    );
    CREATE INDEX events_by_time ON events (time_unix_ns);
    """,
    "ALTER TABLE events ADD COLUMN details TEXT NOT NULL DEFAULT '[]'",
    MAP_SCHEMA,
    """
    CREATE TABLE scores (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        written_unix_ns INTEGER NOT NULL,
        content BLOB NOT NULL
    )
    """,
)

COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Event))
_INSERT: Final = (
    f"INSERT OR IGNORE INTO events (id, {', '.join(COLUMNS)}) "  # noqa: S608  our own column names
    f"VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
)
Stored = tuple[int, Event]
"""An event with its number: unique in the file, growing as events are noted."""

Write = Callable[[sqlite3.Connection], None]
"""Changes rows of one's own tables, within the transaction that is open: no BEGIN, no COMMIT. It may be
called again where the transaction failed, and must then do the same."""


class Store:
    """The writer. `submit` and `commit` are for the tick thread and never wait for the disk."""

    def __init__(self, directory: Path, max_events: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is opened before `start`. `clock` is monotonic, in seconds."""
        self.path = directory / FILE_NAME
        self._max_events = max_events
        self._clock = clock
        self._pending: deque[Stored] = deque()
        self._staged: deque[Write] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._due = False
        self._closing = False
        self._connection: sqlite3.Connection | None = None
        self._count = 0
        self._retry_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.lost = 0
        self.problem = ""
        self.openings = 0  # how often the file was opened: once more where it was taken away or moved aside

    def start(self) -> None:
        """Starts the thread, which opens the file."""
        self._due = True
        self._thread.start()

    def submit(self, events: Iterable[Stored]) -> None:
        """Takes events for the next commit; where too many wait, the oldest go and are counted in `lost`."""
        with self._lock:
            self._pending.extend(events)
            while len(self._pending) > _PENDING_MOST:
                self._pending.popleft()
                self.lost += 1

    def stage(self, write: Write) -> None:
        """Takes a change of one's own tables for the next commit, in the store's thread.

        Where too many wait (a disk that is full for long), the oldest go: whoever stages what must not be
        lost stages it all again now and then.
        """
        with self._lock:
            self._staged.append(write)
            while len(self._staged) > _STAGED_MOST:
                self._staged.popleft()

    def commit(self) -> None:
        """Has everything written that was submitted; once a tick."""
        with self._wake:
            self._due = True
            self._wake.notify()

    def pending(self) -> list[Stored]:
        """What was submitted and is not in the file yet, oldest first."""
        with self._lock:
            return list(self._pending)

    @property
    def staged(self) -> int:
        """How many changes of `stage` are not in the file yet."""
        with self._lock:
            return len(self._staged)

    def close(self, timeout_s: float) -> None:
        """Writes what waits and closes the file, within the time."""
        with self._wake:
            self._closing = self._due = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        waiting = len(self.pending())
        if waiting:
            _log.warning("%d events did not get into %s", waiting, self.path)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._due)
                self._due = False
                closing = self._closing
            self._turn()
            if closing:
                break
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # a full disk: the next start finds the WAL
                self._connection.close()

    def _turn(self) -> None:
        """Opens the file where needed, writes what waits; whatever fails is said once and tried again."""
        if self._connection is None and self._clock() < self._retry_at_s:
            return
        try:
            if self._connection is not None and not self.path.exists():
                _log.warning("%s was taken away: a new one begins", self.path)
                self._connection.close()
                self._connection = None
            if self._connection is None:
                self._connection = self._open()
                self.openings += 1
            self._write(self._connection)
        except sqlite3.Error as error:
            if is_damage(error):
                self._set_aside(error)
            else:
                self._fail(str(error))
        except (OSError, StoreError) as error:
            self._fail((isinstance(error, OSError) and error.strerror) or str(error))
        except Exception as error:  # a fault of ours must not end storing for good
            _log.debug("writing %s", self.path, exc_info=True)
            self._fail(f"{type(error).__name__}: {error}")
        else:
            if self.problem:
                _log.warning("writing %s again", self.path)
            self.problem = ""

    def _fail(self, reason: str) -> None:
        if not self.problem:
            _log.warning("events are not stored: %s: %s; trying again", self.path, reason)
        self.problem = reason
        if self._connection is None:
            self._retry_at_s = self._clock() + _REOPEN_S
        elif self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back already
                self._connection.rollback()

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        refuse_foreign(self.path)
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_MS / 1000)
        try:
            connection.execute("PRAGMA cache_size = -512")
            _require_sound(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_size_limit = 4194304")
            migrate(connection)
            (self._count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _write(self, connection: sqlite3.Connection) -> None:
        batch = self.pending()
        with self._lock:
            writes = list(self._staged)
        if not batch and not writes:
            return
        connection.execute("BEGIN IMMEDIATE")
        for write in writes:
            write(connection)
        added = connection.executemany(_INSERT, map(_row, batch)).rowcount if batch else 0
        surplus = self._count + added - self._max_events
        if surplus > 0:
            connection.execute(
                "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?)", (surplus,)
            )
        connection.execute("COMMIT")
        self._count += added - max(0, surplus)
        with self._lock:
            while batch and self._pending and self._pending[0][0] <= batch[-1][0]:
                self._pending.popleft()
            while writes and self._staged and self._staged[0] is writes[0]:
                self._staged.popleft()
                del writes[0]

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Renames a damaged file, so that the next turn begins a new one."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        aside = self.path.with_name(
            f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        )
        try:
            for suffix in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").replace(f"{aside}{suffix}")
            for old in sorted(self.path.parent.glob(f"{self.path.name}.damaged-*Z"))[:-_DAMAGED_KEPT]:
                for suffix in ("-wal", "-shm", ""):
                    Path(f"{old}{suffix}").unlink(missing_ok=True)
        except OSError as problem:
            self._fail(f"damaged ({error}), and cannot be moved aside: {problem.strerror}")
            return
        _log.warning("%s is damaged (%s): it is now %s, and a new one begins", self.path, error, aside.name)
        self.commit()


def _require_sound(connection: sqlite3.Connection) -> None:
    """Raises DatabaseError for a file whose pages do not fit together; 0.1 s for 100,000 events."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found.splitlines()[-1])


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it says that the file itself is broken (SQLITE_CORRUPT, SQLITE_NOTADB)."""
    return type(error) is sqlite3.DatabaseError


def migrate(connection: sqlite3.Connection, steps: tuple[str, ...] = MIGRATIONS) -> None:
    """Takes the file to the newest schema, each step in a transaction of its own. Raises StoreError."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        raise StoreError(_newer(version))
    for number, script in enumerate(steps[version:], version + 1):
        # executescript() would commit between its statements only if we did not begin ourselves
        connection.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; "
            f"PRAGMA application_id = {_APPLICATION_ID}; COMMIT;"
        )


_LARGEST: Final = 2**63 - 1
_SEVERITY = COLUMNS.index("severity")
_DETAILS = COLUMNS.index("details")


def _row(stored: Stored) -> tuple[object, ...]:
    number, event = stored
    values = [_bindable(getattr(event, name)) for name in COLUMNS]
    values[_SEVERITY] = event.severity.value
    values[_DETAILS] = json.dumps(event.details)
    return (number, *values)


def _bindable(value: object) -> object:
    """What SQLite takes: half a character in a text, or a count beyond 63 bits, would keep all others out."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode()
    return min(value, _LARGEST) if isinstance(value, int) else value


def _newer(version: int) -> str:
    return (
        f"it has version {version} and was written by a newer kernob (this one knows {len(MIGRATIONS)}); "
        "it is left alone"
    )


def refuse_foreign(path: Path) -> None:
    """Raises StoreError for a newer version's file, or another program's, without touching it.

    The header says it (SQLite "Database File Format", 1.3: user version at 60, application id at 68), so
    that nothing needs to be opened that might write.
    """
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return
    version = int.from_bytes(header[60:64], "big")
    owner = int.from_bytes(header[68:72], "big")
    if owner not in (0, _APPLICATION_ID):
        raise StoreError("it is another program's database; it is left alone")
    if version > len(MIGRATIONS):
        raise StoreError(_newer(version))
