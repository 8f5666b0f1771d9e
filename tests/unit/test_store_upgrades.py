# SPDX-License-Identifier: Apache-2.0
"""Files that earlier versions of the agent wrote, opened by this one: nothing of them is lost.

tests/unit/stores/ has one of each schema, as the code of that time wrote it. Whoever adds a migration adds
the dump of a file that the code before it wrote.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from kernob.derive.topology import Dial, Reached, folded, outgoing
from kernob.features.map_memory import MapMemory
from kernob.model import DestinationState, Event, EventQuery, Link, PeerClass
from kernob.state.baseline import Baseline
from kernob.state.history import read
from kernob.state.map_history import read_map
from kernob.state.series import SeriesStore
from kernob.state.service_map import MapState
from kernob.state.store import FILE_NAME, MIGRATIONS, Store, migrate

STORES = Path(__file__).with_name("stores")
VERSIONS = sorted(int(path.stem.rpartition("-")[2]) for path in STORES.glob("version-*.sql"))
NOW = 1_800_000_000 * 10**9
EVENTS = 3
Rows = dict[str, list[tuple[Any, ...]]]


def rows_of(path: Path) -> Rows:
    """Every row of every table."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}")) for name in tables}


def upgraded(directory: Path, version: int) -> Rows:
    """Has this version of the agent open an earlier one's file; what was in it before."""
    path = directory / FILE_NAME
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript((STORES / f"version-{version}.sql").read_text(encoding="utf-8"))
    before = rows_of(path)
    store = Store(directory, 100)
    store.start()
    deadline = time.monotonic() + 30
    while not store.openings:
        assert time.monotonic() < deadline, store.problem
        time.sleep(0.001)
    store.close(30)
    return before


def events_of(directory: Path) -> dict[int, Event]:
    """Every event by its number, as commands read them."""
    return {number: event for page in read(directory, EventQuery()) for number, event in page}


def restored(directory: Path) -> tuple[MapState, Baseline]:
    """The map of an agent that starts with this file."""
    state, baseline = MapState(1000, folded), Baseline(SeriesStore(), 86_400, 100)
    MapMemory(directory, Store(directory, 100), state, baseline).restore()
    return state, baseline


def test_there_is_a_file_of_each_version() -> None:
    """One for each schema there ever was, today's included."""
    assert [*range(1, len(MIGRATIONS) + 1)] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_is_there_after_the_upgrade(tmp_path: Path, version: int) -> None:
    """As it was, with the defaults of columns that came later; the file is no longer of its old version."""
    before = upgraded(tmp_path, version)
    after = rows_of(tmp_path / FILE_NAME)
    assert len(before["events"]) == min(EVENTS, version + 1)
    for name, rows in before.items():
        width = len(rows[0])
        assert [row[:width] for row in after[name]] == rows
        assert {row[width:] for row in after[name]} == {("[]",) if name == "events" and version == 1 else ()}
    assert all(rows == [] for name, rows in after.items() if name not in before)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not list(tmp_path.glob("*.damaged*"))


@pytest.mark.parametrize("version", VERSIONS)
def test_events_are_read_as_they_were(tmp_path: Path, version: int) -> None:
    """Also before any agent upgraded the file."""
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.executescript((STORES / f"version-{version}.sql").read_text(encoding="utf-8"))
    old = events_of(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    upgraded(tmp_path, version)
    found = events_of(tmp_path)
    assert found == old
    assert (found[11].body, found[11].tx_bytes) == ('peer reset it\'s "connection"', 2**53 + 1)
    assert (found[12].count, found[12].first_unix_ns, found[12].suppressed) == (7, NOW - 5, 2)
    if version > 1:
        assert found[13].details == (("process.exit.code", 139), ("kernob.oom", True), ("x", "\u00fc'"))


def to(service: str, dial: Dial, service_there: Reached | None = None, here: bool = False) -> Link:
    return outgoing("vm", service, dial, PeerClass.EXTERNAL, service_there, here=here)


@pytest.mark.parametrize("version", [version for version in VERSIONS if version > 2])
def test_history_and_baseline_go_on(tmp_path: Path, version: int) -> None:
    """Totals are those of before, what was known is not new, what was accepted stays so."""
    upgraded(tmp_path, version)
    nodes, edges, destinations = read_map(tmp_path)
    state, baseline = restored(tmp_path)
    shown_nodes, shown_edges = state.rows()
    assert {row.id: row for row in shown_nodes} == {row.id: row for row in nodes}
    assert {row.key: row for row in shown_edges} == {row.key: row for row in edges}
    assert {row.key: (row.tx_bytes - 2**40, row.rx_bytes, row.connections) for row in edges} == {
        ("vm/app", "vm/redis", 6379): (0, 100, 3),
        ("vm/app", "dns/api.example", 443): (1, 101, 4),
        ('vm/caf\u00e9\'s "x"', "ip/192.0.2.2", 443): (2, 102, 5),
        ("vm/app", "vm/ip/127.0.0.1", 9): (3, 103, 6),
        ("clients/external", "vm/app", 80): (4, 104, 7),
        ("vm/app", "others/external", 0): (5, 105, 8),
    }
    assert sorted(baseline.rows(), key=str) == sorted(destinations, key=str)
    assert {(row.target, row.port): row.state for row in destinations} == {
        ("vm/redis", 6379): DestinationState.LEARNED,
        ("dns/api.example", 443): DestinationState.ACCEPTED,
        ("ip/192.0.2.2", 443): DestinationState.NEW,
        ("vm/ip/127.0.0.1", 9): DestinationState.NEW,
    }
    known = [
        to("app", Dial(1, "127.0.0.1", 6379), Reached("redis", 1, 6379), here=True),
        to("app", Dial(1, "198.51.100.99", 443, "api.example")),
        to('caf\u00e9\'s "x"', Dial(1, "192.0.2.2", 443)),
        to("app", Dial(1, "127.0.0.1", 9), here=True),
    ]
    assert [event for link in known for event in baseline.see(link, NOW, NOW + 10**15)] == []
    assert len(baseline.see(to("app", Dial(1, "192.0.2.77", 443)), NOW, NOW + 10**15)) == 1


def test_an_older_schema_is_taken_to_the_newest(tmp_path: Path) -> None:
    """Migrations run once each, in order; one that fails changes nothing."""
    with sqlite3.connect(tmp_path / "x.db", isolation_level=None) as connection:
        migrate(connection)
        connection.execute(
            "INSERT INTO events SELECT 1, 2, 'k', 'info', 's', 'b', 'e', 1, 1, 'r', 'a', 1, 'p', 1, 1, "
            "'', '', '', 0, 1, 0, 0, -1, -1, 0, 0, '[]'"
        )
        later = (*MIGRATIONS, "CREATE TABLE nodes (id TEXT PRIMARY KEY); ALTER TABLE events ADD x TEXT")
        broken = (*later, "CREATE TABLE half (x); CREATE TABLE half (x)")
        with pytest.raises(sqlite3.Error):
            migrate(connection, broken)
        connection.rollback()
        version = connection.execute("PRAGMA user_version").fetchone()
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert version == (len(later),)
        assert tables == {"events", "map_nodes", "map_edges", "map_destinations", "scores", "nodes"}
        migrate(connection, later)
        assert connection.execute("SELECT count(*), count(x) FROM events").fetchone() == (1, 0)
    connection.close()
