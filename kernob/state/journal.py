# SPDX-License-Identifier: Apache-2.0
"""The events of the agent for whoever asks: the last ones in memory, the others out of the store.

In: events from the tick thread. Out: answers to queries and to followers, in any thread. Called by `agent`
and `export.socket`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import threading
from collections import deque
from collections.abc import Generator, Iterable
from typing import Final

from kernob.errors import StoreError
from kernob.model import Event, EventQuery
from kernob.state.history import read
from kernob.state.store import Store, Stored
from kernob.state.text import wild

RECENT: Final = 1_000
"""Events kept in memory, about 1 MB; a follower that is further behind than these has lost touch."""

_PATIENCE_S: Final = 1.0


class Journal:
    """Numbers events and remembers them. `note` and `commit` are for the tick thread."""

    def __init__(self, store: Store | None, first: int) -> None:
        """`first` is the number of the first event, above all in the store: the time in ns will do."""
        self._store = store
        self._next = first
        self._recent: deque[Stored] = deque(maxlen=RECENT)
        self._changed = threading.Condition()
        self._closed = False

    @property
    def lost(self) -> int:
        """Events that could not be stored."""
        return self._store.lost if self._store else 0

    def note(self, events: Iterable[Event]) -> None:
        """Takes events, in the order they happened."""
        with self._changed:
            numbered = list(enumerate(events, self._next))
            self._next += len(numbered)
            self._recent.extend(numbered)
            self._changed.notify_all()
        if self._store:
            self._store.submit(numbered)

    def commit(self) -> None:
        """Has the store write what was noted; once a tick."""
        if self._store:
            self._store.commit()

    def close(self, timeout_s: float) -> None:
        """Ends followers and the store, within the time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._store:
            self._store.close(timeout_s)

    def query(self, query: EventQuery) -> Generator[list[Event], None, None]:
        """What the query asks for, oldest first, in pages."""
        yield from self._pages(query, *self._noted(query))

    def _noted(self, query: EventQuery) -> tuple[list[Stored], int]:
        """What memory has of it, which may be in the file too, and the number the next event will have."""
        with self._changed:
            found = {number: event for number, event in self._recent if matches(event, query)}
            following = self._next
        waiting = self._store.pending() if self._store else ()
        found.update((n, event) for n, event in waiting if n < following and matches(event, query))
        return sorted(found.items()), following

    def _pages(
        self, query: EventQuery, noted: list[Stored], following: int
    ) -> Generator[list[Event], None, None]:
        begun = False
        if self._store:
            with contextlib.suppress(StoreError):  # its own thread has said what is wrong
                for page in read(self._store.path.parent, query, noted):
                    begun = True
                    # what was noted since is for whoever follows
                    yield [event for number, event in page if number < following]
        if not begun:
            noted.sort(key=lambda stored: (stored[1].time_unix_ns, stored[0]))
            yield [event for _, event in noted[-query.limit :]]

    def follow(self, query: EventQuery) -> Generator[list[Event], None, None]:
        """The answer to the query first, then events as they come; an empty list once a second without.

        Ends with the agent. Raises ValueError for a reader that is too slow to be told everything.
        """
        noted, following = self._noted(query)
        yield from self._pages(query, noted, following)
        while True:
            new, following = self._after(following)
            if new is None:
                return
            yield [event for event in new if matches(event, query)]

    def _after(self, number: int) -> tuple[list[Event] | None, int]:
        """Waits up to a second for events from this number on; None once the agent has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._next > number or self._closed, _PATIENCE_S)
            if self._next - number > len(self._recent):
                raise ValueError(f"{self._next - number} events came faster than they were read")
            new = [event for at, event in self._recent if at >= number]
            return (new if new or not self._closed else None), self._next


def matches(event: Event, query: EventQuery) -> bool:
    """Whether an event passes the filters of a query."""
    return (
        event.time_unix_ns >= query.since_unix_ns
        and (not query.kinds or event.kind in query.kinds)
        and (not query.service or fnmatch.fnmatchcase(event.service, wild(query.service)))
    )
