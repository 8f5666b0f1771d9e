# SPDX-License-Identifier: Apache-2.0
"""state.store on real files: what is written survives, and a bad disk harms nobody."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kernob.errors import StoreError
from kernob.model import Attributes, Event, EventQuery, Severity
from kernob.state import history
from kernob.state import store as store_module
from kernob.state.store import _STAGED_MOST, FILE_NAME, MIGRATIONS, Store, Stored, migrate
from tests.unit.tcp_events import event

ROOT = Path(__file__).resolve().parents[2]
ALL = EventQuery(limit=1_000_000)


def read(directory: Path, query: EventQuery) -> list[Stored]:
    return [stored for page in history.read(directory, query) for stored in page]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    stores = []

    def make(directory: Path = tmp_path, most: int = 1000, **options: object) -> Store:
        stores.append(Store(directory, most, **options))  # type: ignore[arg-type]
        stores[-1].start()
        return stores[-1]

    yield make
    for each in stores:
        each.close(10)


def write(store: Store, *numbers: int) -> None:
    store.submit((number, event(number)) for number in numbers)
    store.commit()


def numbers(directory: Path, query: EventQuery = ALL) -> list[int]:
    return [number for number, _ in read(directory, query)]


def test_what_is_written_comes_back_whole(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """Every field of every event, in order of time, also while the writer is at work."""
    store = opened()
    events = [event(3.5), event(1.25, service="a", idle=False, gap_s=-1.0), event(2, body="it's \x00 odd")]
    store.submit(enumerate(events, 1))
    store.commit()
    until(lambda: not store.pending())
    assert read(tmp_path, ALL) == [(2, events[1]), (3, events[2]), (1, events[0])]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    store.close(10)
    assert len(read(tmp_path, ALL)) == 3
    assert store.problem == ""


def test_columns_are_the_fields_of_an_event(tmp_path: Path) -> None:
    """A field that is added to Event needs a migration."""
    with sqlite3.connect(tmp_path / "x.db", isolation_level=None) as connection:
        migrate(connection)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(events)")]
    connection.close()
    assert columns == ["id", *(field.name for field in dataclasses.fields(Event))]


def test_queries(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """The newest within the limit, oldest first; by time, service pattern and kind."""
    store = opened()
    kinds = ["kernob.tcp.reset", "kernob.tcp.drop"]
    store.submit((i, event(i, service=f"web-{i % 3}", kind=kinds[i % 2])) for i in range(1, 31))
    store.close(10)
    assert numbers(tmp_path, EventQuery(limit=3)) == [28, 29, 30]
    assert numbers(tmp_path, EventQuery(since_unix_ns=28 * 10**9, limit=99)) == [28, 29, 30]
    assert numbers(tmp_path, EventQuery(service="web-1", limit=3)) == [22, 25, 28]
    assert numbers(tmp_path, EventQuery(service="web*", limit=2)) == [29, 30]
    assert numbers(tmp_path, EventQuery(kinds=(kinds[0],), limit=2)) == [28, 30]
    assert numbers(tmp_path, EventQuery(kinds=tuple(kinds), service="web-0", limit=2)) == [27, 30]
    assert numbers(tmp_path, EventQuery(service="web-[1]")) == []  # only * and ? are special
    assert numbers(tmp_path, EventQuery(service="'; DROP TABLE events; --")) == []


def test_the_oldest_go_so_that_the_bound_holds(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """Never more than the bound, also across a restart with a smaller one."""
    store = opened(most=50)
    for first in range(1, 200, 20):
        write(store, *range(first, first + 20))
        until(lambda: not store.pending())
    assert numbers(tmp_path) == list(range(151, 201))
    store.close(10)
    smaller = opened(most=10)
    write(smaller, 201)
    smaller.close(10)
    assert numbers(tmp_path) == list(range(192, 202))


def test_a_restart_goes_on_with_the_same_file(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """What an earlier life wrote is still there."""
    for life in range(3):
        store = opened()
        write(store, life + 1)
        store.close(10)
    assert numbers(tmp_path) == [1, 2, 3]


_WRITER = """
import sys
from pathlib import Path
from kernob.state.store import Store
from tests.unit.tcp_events import event
store = Store(Path(sys.argv[1]), 100000)
store.start()
for number in range(1, 10**9):
    store.submit([(number, event(number))])
    store.commit()
    while store.pending():
        pass
    print(number, flush=True)
"""


def test_kill_9_leaves_the_file_whole(tmp_path: Path) -> None:
    """What was reported as written is there, and the next life writes on."""
    script = textwrap.dedent(_WRITER)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout
        written = 0
        for line in process.stdout:
            written = int(line)
            if written == 200:
                process.send_signal(signal.SIGKILL)
                break
    found = numbers(tmp_path)
    assert found[:written] == list(range(1, written + 1))
    store = Store(tmp_path, 100_000)
    store.start()
    write(store, 10**6)
    store.close(10)
    assert numbers(tmp_path) == [*found, 10**6]
    assert not list(tmp_path.glob("*.damaged*"))


@pytest.mark.parametrize("damage", ["header", "middle", "text"])
def test_a_damaged_file_is_moved_aside(
    tmp_path: Path, opened: Callable[..., Store], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """Named in one line, kept under another name, and a new file begins."""
    store = opened()
    write(store, *range(1, 500))
    store.close(10)
    path = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[0:16] = bytes(16)
    elif damage == "middle":
        content[8192:40960] = os.urandom(32768)
    else:
        content = bytearray(b"# not a database at all\n" * 50)
    path.write_bytes(content)
    again = opened()
    write(again, 1000)
    until(lambda: not again.pending())
    assert numbers(tmp_path) == [1000]
    (aside,) = tmp_path.glob(f"{FILE_NAME}.damaged-*Z")
    assert aside.read_bytes() == content
    assert len(caplog.records) == 1
    assert aside.name in caplog.text
    assert again.problem == ""


def test_only_the_last_damaged_files_are_kept(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """A disk that breaks files again and again is not filled with them."""
    for second in range(5):
        (tmp_path / f"{FILE_NAME}.damaged-2026010{second}T000000Z").write_text("x")
    (tmp_path / FILE_NAME).write_text("no database, but long enough to be looked at" * 10)
    store = opened()
    write(store, 1)
    until(lambda: not store.pending())
    kept = sorted(each.name for each in tmp_path.glob("*.damaged*"))
    assert len(kept) == 3
    assert kept[0].endswith("20260103T000000Z")


def test_a_file_that_is_taken_away_is_begun_anew(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """Somebody cleaned up under a running agent: what comes from then on is stored again."""
    store = opened()
    write(store, 1)
    until(lambda: not store.pending())
    for each in tmp_path.iterdir():
        each.unlink()
    write(store, 2)
    until(lambda: not store.pending())
    assert numbers(tmp_path) == [2]


def test_a_newer_versions_file_is_left_alone(
    tmp_path: Path, opened: Callable[..., Store], caplog: pytest.LogCaptureFixture
) -> None:
    """One line; not a byte changes; nothing appears beside it."""
    store = opened()
    write(store, 1)
    store.close(10)
    path = tmp_path / FILE_NAME
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    before = path.read_bytes()
    newer = opened()
    write(newer, 2)
    until(lambda: newer.problem != "")
    newer.close(10)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]
    lines = [record.getMessage() for record in caplog.records if "newer kernob" in record.getMessage()]
    assert len(lines) == 1
    with pytest.raises(StoreError, match="written by a newer kernob"):
        read(tmp_path, ALL)


def test_another_programs_database_is_left_alone(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """Somebody's file of this name is not ours to migrate."""
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA application_id = 7")
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    store = opened()
    until(lambda: "another program's" in store.problem)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_what_is_staged_is_written_with_the_events(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """Other parts' changes are made in order, each once; those that wait beyond the bound are given up."""
    store = Store(tmp_path, 10)
    for number in range(_STAGED_MOST + 2):
        store.stage(partial(_put, number))
    store.start()
    until(lambda: not store.problem and not store._staged)
    store.stage(partial(_put, -1))
    store.commit()
    until(lambda: not store._staged)
    store.close(10)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        numbers = [row[0] for row in connection.execute("SELECT number FROM mine ORDER BY rowid")]
    assert numbers == [*range(2, _STAGED_MOST + 2), -1]


def _put(number: int, connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS mine (number INTEGER)")
    connection.execute("INSERT INTO mine VALUES (?)", (number,))


def test_an_event_that_does_not_fit_keeps_no_other_out(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """Half a character becomes a question mark, a count beyond 63 bits the largest; the next one is there."""
    store = opened()
    odd = dataclasses.replace(event(1), body="caf\udce9 \u00e9", tx_bytes=2**64 - 1)
    store.submit([(1, odd)])
    store.commit()
    write(store, 2)
    until(lambda: not store.pending())
    (_, first), (_, second) = read(tmp_path, ALL)
    assert (first.body, first.tx_bytes, second) == ("caf? \u00e9", 2**63 - 1, event(2))


def test_a_fault_of_ours_does_not_end_storing(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """What is staged raises what nobody expected, for a while: then it is written, and all events with it."""
    store = opened()
    faults = ["our own"]

    def broken(_connection: sqlite3.Connection) -> None:
        if faults:
            raise IndexError(faults[0])

    store.stage(broken)
    write(store, 1)
    until(lambda: store.problem == "IndexError: our own")
    faults.clear()
    write(store, 2)
    until(lambda: not store.pending() and not store.problem)
    assert [number for number, _ in read(tmp_path, ALL)] == [1, 2]
    assert store.staged == 0


def test_details_come_back_from_a_file(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """What only one kind of event has is stored with it; files of before have none."""
    details: Attributes = (
        ("process.exit.code", 139),
        ("process.command_line", "x\u00e9 -v"),
        ("kernob.oom", True),
    )
    store = opened(tmp_path)
    store.submit([(1, Event(5, "kernob.process.exit", Severity.WARN, "s", "b", details=details))])
    store.commit()
    until(lambda: not store.pending())
    ((_number, event),) = read(tmp_path, EventQuery())
    assert event.details == details
    store.close(10)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE events DROP COLUMN details")
        connection.execute("PRAGMA user_version = 1")
    ((_number, event),) = read(tmp_path, EventQuery())
    assert event.details == ()


def test_a_directory_that_cannot_be_written_is_no_failure(
    tmp_path: Path, opened: Callable[..., Store], caplog: pytest.LogCaptureFixture
) -> None:
    """Where the state directory is a file: one line, and events wait until it is put right."""
    place = tmp_path / "state"
    place.write_text("in the way")
    now = [0.0]
    store = opened(place, clock=lambda: now[0])
    until(lambda: store.problem != "")
    for number in range(1, 4):
        write(store, number)
    place.unlink()

    def away() -> bool:
        now[0] += 61.0  # again and again: when the store tries next may be reckoned from after the first
        store.commit()
        return not store.pending()

    until(away)
    assert numbers(place) == [1, 2, 3]
    until(lambda: not store.problem)  # said a moment after the events are away
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("events are not stored")
    assert lines[1].startswith("writing")


def test_what_cannot_wait_any_longer_is_counted(
    tmp_path: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest of too many waiting go; each is counted."""
    monkeypatch.setattr(store_module, "_PENDING_MOST", 10)
    (tmp_path / "state").write_text("in the way")
    store = opened(tmp_path / "state")
    until(lambda: store.problem != "")
    write(store, *range(1, 26))
    assert store.lost == 15
    assert [number for number, _ in store.pending()] == list(range(16, 26))


def test_a_locked_file_holds_nobody_up(tmp_path: Path, opened: Callable[..., Store]) -> None:
    """Another process with a lock delays the store, never the one who submits."""
    store = opened()
    write(store, 1)
    until(lambda: not store.pending())
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    write(store, 2)
    assert [number for number, _ in store.pending()] == [2]
    assert numbers(tmp_path) == [1]
    other.execute("ROLLBACK")
    other.close()
    until(lambda: not store.pending())
    assert numbers(tmp_path) == [1, 2]


def test_reading_without_a_file_says_so_in_one_line(tmp_path: Path) -> None:
    """No file, no database: StoreError names the path."""
    with pytest.raises(StoreError, match=r"there is no .*kernob\.db"):
        read(tmp_path, ALL)
    (tmp_path / FILE_NAME).write_bytes(b"x" * 4096)
    with pytest.raises(StoreError, match=r"cannot read .*kernob\.db: file is not a database"):
        read(tmp_path, ALL)
    (tmp_path / FILE_NAME).write_bytes(b"")
    assert read(tmp_path, ALL) == []
