# SPDX-License-Identifier: Apache-2.0
"""What a feature is: a part of the tick with its own probe, state and answers.

`pipeline` makes the features and calls them, always from the tick thread, so that none of them needs locks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from kernob.model import Event

if TYPE_CHECKING:
    from kernob.kernel.session import Session
    from kernob.probes.traffic import TrafficRows
    from kernob.state.flows import Growth

Report = Callable[[Mapping[str, str]], Mapping[str, Any]]
"""Answers one kind of question with a JSON document; the question's words are a client's, and not to be
trusted. Raises ValueError, one line, for words that make no sense."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One reading of the kernel's counters.

    `rows` is what was read of bytes and sockets, `growth` what grew by it. `now_s` is monotonic; series that
    are new begin at `since_unix_ns`, just after the tick before. `window_s` is the length of the aggregation
    window that ends with this tick, None where it goes on.
    """

    session: Session
    rows: TrafficRows
    growth: Growth
    now_s: float
    now_unix_ns: int
    since_unix_ns: int
    window_s: float | None


class Feature:
    """Does nothing; each feature says what is different.

    Called in this order: open, watch, tick ..., detached, tick, close.
    """

    def open(self, session: Session) -> None:
        """Programs are attached; nothing was read yet. Raises KernelError."""

    def watch(self) -> None:
        """Begins to take note of what comes by itself, in threads; capabilities are dropped by now."""

    def detached(self) -> None:
        """Programs are gone: ends threads, so that the last tick finds everything."""

    def tick(self, tick: Tick) -> None:
        """Reads what is its own, and brings its series up to date. Raises MapError."""

    def events(self) -> list[Event]:
        """What happened since the last call; called often, and cheap where nothing did."""
        return []

    def summaries(self, now_unix_ns: int) -> list[Event]:
        """What was beyond a rate cap since the last call: once a scheduled tick."""
        return []

    @property
    def suppressed(self) -> int:
        """Events beyond a rate cap, which summaries tell (cumulative)."""
        return 0

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for a cap (cumulative)."""
        return 0

    def losses(self, counts: NDArray[Any]) -> dict[str, int]:
        """Cumulative counts by kernob.cause; `counts` is the losses array (enum loss of bpf/types.h)."""
        return {}

    def usage(self) -> dict[str, int]:
        """Entries that the last tick read, by map."""
        return {}

    def parts(self) -> dict[str, Any]:
        """Fields of the Snapshot that are this feature's."""
        return {}

    def reports(self) -> dict[str, Report]:
        """What clients may ask it, by name."""
        return {}

    def close(self) -> None:
        """Lets go of everything; the session may be closed already. Safe to call twice."""


_SWITCHES: Final = {"map": "KERNOB_MAP", "destinations": "KERNOB_MAP", "lifecycle": "KERNOB_LIFECYCLE"}


def no_report(name: str, known: Iterable[str]) -> str:
    """Why an agent cannot answer a client: that part is switched off, or nobody knows it."""
    if name in _SWITCHES:
        return f"{_SWITCHES[name]}=false switches that off, or its hooks are missing: kernob doctor"
    return f"this agent has no report {name!r}; it has: {', '.join(sorted(known)) or 'none'}"
