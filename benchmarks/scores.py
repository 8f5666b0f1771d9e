# SPDX-License-Identifier: Apache-2.0
"""What scores cost at 10,000 dependencies: CPU of a tick by its parts, memory of the windows.

Run as `python -m benchmarks.scores [dependencies] [failing, a share]`. The rows are made up, in the form the
kernel side has: in each interval of 10 s every dependency connects once, exchanges three times and sends some
segments; a share of them is refused instead. All else is the agent's own code.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.table import median, show
from kernob.features.scores import Scores
from kernob.model import Fate, Outcome
from kernob.state.buckets import BUCKETS
from tests.unit.records import DURATION_KEY, DURATION_VAL, FLOW_KEY, SOCK_VAL
from tests.unit.score_fixture import ANSWERED, ESTABLISHED, Fixture

_WINDOW_TICKS = 62
_MEASURED = 30
_PARTS = ("_fold", "_evaluate", "_export")


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _keys(count: int) -> NDArray[Any]:
    """Flows of 500 services with addresses of their own."""
    keys = np.zeros(count, FLOW_KEY)
    number = np.arange(count)
    keys["tgid"], keys["port"], keys["family"] = 1000 + number % 500 * 10, 443, 2
    keys["role"], keys["proto"], keys["start"], keys["exec"] = 1, 6, 7, 1
    keys["peer"][:, 0] = 10
    keys["peer"][:, 2] = number >> 8 & 0xFF
    keys["peer"][:, 3] = number & 0xFF
    return keys


class _Load(Fixture):
    """Ticks of 10 s in which everything moves; times the parts of each."""

    def __init__(self, count: int, failing: float, *, scored: bool = True) -> None:
        super().__init__(max_scores=count, scores=scored)
        self.keys = _keys(count)
        self.refused = np.arange(count) < failing * count
        self.chance = np.random.default_rng(7)
        self.live = np.zeros(count, SOCK_VAL)
        self.live["key"], self.live["state"], self.live["phase"] = self.keys, ESTABLISHED, ANSWERED
        self.spent_ms: dict[str, list[float]] = {name: [] for name in ("all", *_PARTS)}
        for name in _PARTS:
            setattr(self.scores, name, self._timed(name, getattr(self.scores, name)))
        self.scores.tick = self._timed("all", self.scores.tick)  # type: ignore[method-assign]

    def _timed(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            began = time.thread_time()
            call(*arguments)
            self.spent_ms[name].append((time.thread_time() - began) * 1e3)

        return timed

    def facts(self) -> list[tuple[bytes, int, int, int, int, int]]:
        """An attempt each."""
        outcomes = np.where(self.refused, Outcome.REFUSED, Outcome.OK).tolist()
        raw = [self.keys[i].tobytes() for i in range(len(self.keys))]
        return [(key, Fate.CONNECTION, out, 0, 0, 1) for key, out in zip(raw, outcomes, strict=True)]

    def durations(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """A connect and three responses each, of six lengths."""
        good = self.keys[~self.refused]
        keys = np.zeros(2 * len(good), DURATION_KEY)
        values = np.zeros(2 * len(good), DURATION_VAL)
        keys["flow"] = np.concatenate([good, good])
        keys["kind"][len(good) :] = 1
        for times in (slice(0, len(good)), *[slice(len(good), None)] * 3):
            lengths = 36 + self.chance.integers(0, 6, len(good)) + (times.stop is None) * 8
            np.add.at(values["buckets"], (np.arange(len(keys))[times], lengths % BUCKETS), 1)
        return keys, values

    def move(self, facts: list[Any]) -> None:
        """One tick."""
        self.live["answers"][~self.refused] += 3
        self.live["segments"][~self.refused] += 10
        self.tick(*facts, measured=self.durations(), live=self.live.copy())
        self.store.acknowledge(self.store.batch(self.unix_ns()))


def arrays_mib(scores: Scores) -> float:
    """What the windows hold, rings of durations included."""
    windows = vars(scores.dependencies.windows)
    total = sum(each.nbytes for each in windows.values() if isinstance(each, np.ndarray))
    for bucket in windows["_buckets"]:
        total += sum(each.nbytes for each in (*bucket.places, *bucket.counts))
    return float(total) / 2**20


def grown_mib(count: int, failing: float, *, scored: bool) -> float:
    """By how much a process of its own grows with a full window, with scores or without, in MiB."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        gc.collect()
        before_mib = _rss_mib()
        load = _Load(count, failing, scored=scored)
        facts = load.facts()
        for _ in range(_WINDOW_TICKS):
            load.move(facts)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        os.write(writer, f"{_rss_mib() - before_mib}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        grown = float(stream.read())
    os.waitpid(pid, 0)
    return grown


def main() -> None:
    """Prints the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    failing = float(sys.argv[2]) if len(sys.argv) > 2 else 0.01
    own_mib = grown_mib(count, failing, scored=True) - grown_mib(count, failing, scored=False)
    load = _Load(count, failing)
    facts = load.facts()
    for _ in range(_WINDOW_TICKS):
        load.move(facts)
    for spent in load.spent_ms.values():
        spent.clear()
    for _ in range(_MEASURED):
        load.move(facts)
    rows = [
        [name.lstrip("_"), f"{median(spent):.1f}", f"{min(spent):.1f}", f"{max(spent):.1f}"]
        for name, spent in load.spent_ms.items()
    ]
    show(
        f"scores of {count:,} dependencies, {failing:.0%} failing: CPU of a tick, ms",
        ("part", "median", "least", "most"),
        rows,
        f"{_MEASURED} ticks with a full window. Windows: {arrays_mib(load.scores):.0f} MiB of arrays. With "
        f"their series and names, scores take {own_mib:.0f} MiB more than the same without them.",
    )


if __name__ == "__main__":
    main()
