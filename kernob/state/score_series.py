# SPDX-License-Identifier: Apache-2.0
"""Scores as series: one where there is a score, none where there is none.

In: names of rows and a table of values, NaN for none. Out: series in blocks of a SeriesStore. Called by
`features.scores`, in the tick thread. The metrics' specifications are here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernob.model import COMPOSITE, DIMENSIONS, Attributes, MetricKind, MetricSpec
from kernob.state.blocks import SeriesBlock

_WHOM: Final = ("kernob.service", "server.address", "server.port")
SCORE = MetricSpec(
    "kernob.dependency.score",
    "1",
    MetricKind.GAUGE,
    "How well a destination serves a service, from 0 to 1 (docs/scores.md); absent with too few samples.",
    (*_WHOM, "kernob.score.dimension"),
    integer=False,
)
DESTINATION_SCORE = MetricSpec(
    "kernob.destination.score",
    "1",
    MetricKind.GAUGE,
    "The same over all services and ports of a destination.",
    ("server.address", "kernob.score.dimension"),
    integer=False,
)
SAMPLES = MetricSpec(
    "kernob.dependency.samples",
    "{sample}",
    MetricKind.GAUGE,
    "What a score rests on; error.type is the commonest reason of failure in its window.",
    (*_WHOM, "kernob.score.dimension", "error.type", "kernob.name.source"),
)
FAILING_NOW = MetricSpec(
    "kernob.dependency.failing_now",
    "{attempt}",
    MetricKind.GAUGE,
    "Attempts to connect that have sent their SYN again and still wait.",
    _WHOM,
)
LAST_FAILURE = MetricSpec(
    "kernob.dependency.last_failure",
    "s",
    MetricKind.GAUGE,
    "Unix time of the latest failure that counts in a score's window.",
    _WHOM,
    integer=False,
)
WAIT_TIMEOUTS = MetricSpec(
    "kernob.wait.timeouts",
    "{wait}",
    MetricKind.COUNTER,
    "Waits that ran their full timeout on a response that never came; counted when its exchange ends.",
    ("kernob.service", "server.address", "process.executable.name"),
)
SPECS = (SCORE, DESTINATION_SCORE, SAMPLES, FAILING_NOW, LAST_FAILURE, WAIT_TIMEOUTS)
SCORED: Final = (*DIMENSIONS, COMPOSITE)
"""Columns of a table of scores."""

Name = Callable[[int, int], Attributes]
"""Attributes of the series in a row and column."""


class SeriesTable:
    """The series of one metric, by row and column. What a row stands for is told by its identity."""

    def __init__(self, block: SeriesBlock, columns: int) -> None:
        self._block = block
        self._slots = np.full((0, columns), -1, np.int64)
        self._stand_for: list[Hashable] = []
        self._variants: list[str] = []
        self._seen: Sequence[Hashable] | None = None

    def __len__(self) -> int:
        return int((self._slots >= 0).sum())

    def set(
        self,
        identities: Sequence[Hashable],
        values: NDArray[np.float64],
        name: Name,
        start_unix_ns: int,
        variants: Sequence[str] = (),
    ) -> None:
        """Has each series say its value; those without (NaN), or whose row stands for another, end.

        A sequence of `identities` that was given before is taken to be what it was.

        `variants` tell apart, by row, what else its series' attributes depend on.
        """
        rows, columns = values.shape
        if rows > len(self._slots):
            more = np.full((rows - len(self._slots), columns), -1, np.int64)
            self._slots = np.concatenate([self._slots, more])
            self._stand_for += [None] * (rows - len(self._stand_for))
            self._variants += [""] * (rows - len(self._variants))
        changed = []
        if identities is not self._seen:
            pairs = zip(self._stand_for, identities, strict=False)
            changed = [row for row, (old, new) in enumerate(pairs) if old is not new and old != new]
            self._seen = identities
        both = zip(self._variants, variants, strict=False)
        changed += [row for row, (old, new) in enumerate(both) if old != new]
        present = ~np.isnan(values)
        gone = ~present
        gone[changed] = True
        gone &= self._slots[:rows] >= 0
        if gone.any():
            self._block.end(self._slots[:rows][gone])
            self._slots[:rows][gone] = -1
        for row in changed:
            self._stand_for[row] = identities[row]
            self._variants[row] = variants[row] if variants else ""
        for row, column in np.argwhere(present & (self._slots[:rows] < 0)).tolist():
            self._slots[row, column] = self._block.admit(name(row, column), start_unix_ns)
        self._block.set(self._slots[:rows][present], np.round(values[present], 4))


def absent(rows: int, columns: int) -> NDArray[np.float64]:
    """A table in which nothing is known yet."""
    return np.full((rows, columns), math.nan)
