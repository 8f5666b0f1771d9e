# SPDX-License-Identifier: Apache-2.0
"""state.journal: every event is in an answer once, whether it is still in memory or in the store already."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kernob.model import Event, EventQuery
from kernob.state import journal as journal_module
from kernob.state.history import last_number
from kernob.state.journal import Journal, matches
from kernob.state.store import Store
from tests.unit.tcp_events import event

ALL = EventQuery(limit=1_000_000)


def asked(journal: Journal, query: EventQuery) -> list[int]:
    return seconds([event for page in journal.query(query) for event in page])


def seconds(events: list[Event]) -> list[int]:
    return [each.time_unix_ns // 10**9 for each in events]


def test_without_a_store_the_last_events_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory alone answers, bounded."""
    monkeypatch.setattr(journal_module, "RECENT", 5)
    journal = Journal(None, 1)
    for second in range(9):
        journal.note([event(second)])
    journal.commit()
    assert asked(journal, ALL) == [4, 5, 6, 7, 8]
    assert asked(journal, EventQuery(limit=2)) == [7, 8]
    assert journal.lost == 0
    journal.close(1)


def test_an_answer_has_every_event_once_while_the_store_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 events through a memory of 50, asked for again and again in between: never a gap, never two."""
    monkeypatch.setattr(journal_module, "RECENT", 50)
    store = Store(tmp_path, 100_000)
    store.start()
    journal = Journal(store, 10)
    noted = threading.Event()

    def write() -> None:
        for first in range(0, 2000, 10):
            journal.note([event(first + i) for i in range(10)])
            journal.commit()
        noted.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not noted.is_set():
        found = asked(journal, ALL)
        assert found == list(range(len(found)))
    thread.join()
    assert asked(journal, ALL) == list(range(2000))
    journal.close(10)
    assert last_number(tmp_path) == 2009


def test_a_new_life_goes_on_behind_the_old_one(tmp_path: Path) -> None:
    """Numbers grow also where the clock was set back meanwhile, so that nothing is hidden or pruned early."""
    for life in range(2):
        store = Store(tmp_path, 100)
        journal = Journal(store, max(1000 - life * 900, last_number(tmp_path) + 1))
        store.start()
        journal.note([event(life)])
        assert asked(journal, ALL)[-1] == life
        journal.close(10)
    assert last_number(tmp_path) == 1001
    assert last_number(tmp_path / "nowhere") == 0


def test_followers_get_history_then_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event between the answer and what follows it is lost or told twice; filters hold for both."""
    journal = Journal(None, 1)
    journal.note([event(1), event(2, service="other")])
    following = journal.follow(EventQuery(service="orders*"))
    assert seconds(next(following)) == [1]
    journal.note([event(3), event(4, service="other"), event(5)])
    assert seconds(next(following)) == [3, 5]
    threading.Timer(0.05, lambda: journal.note([event(6)])).start()
    assert seconds(next(filter(None, following))) == [6]  # without those that say that nothing came
    monkeypatch.setattr(journal_module, "_PATIENCE_S", 0.01)
    assert next(following) == []
    journal.note([event(7)])
    journal.close(1)
    assert seconds(next(following)) == [7]
    with pytest.raises(StopIteration):
        next(following)


def test_a_follower_that_lost_touch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no longer in memory cannot be followed: an error, not a silent gap."""
    monkeypatch.setattr(journal_module, "RECENT", 5)
    journal = Journal(None, 1)
    following = journal.follow(ALL)
    next(following)
    journal.note([event(i) for i in range(6)])
    with pytest.raises(ValueError, match="6 events came faster"):
        next(following)


@pytest.mark.parametrize(
    ("query", "passes"),
    [
        (EventQuery(), True),
        (EventQuery(since_unix_ns=10**9), True),
        (EventQuery(since_unix_ns=10**9 + 1), False),
        (EventQuery(service="orders.py"), True),
        (EventQuery(service="ord*.p?"), True),
        (EventQuery(service="Orders.py"), False),
        (EventQuery(kinds=("kernob.tcp.reset",)), True),
        (EventQuery(kinds=("kernob.tcp.drop",)), False),
    ],
)
def test_filters(query: EventQuery, passes: bool) -> None:
    """By time, service pattern and kind."""
    assert matches(event(1), query) is passes
