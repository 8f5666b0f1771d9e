# SPDX-License-Identifier: Apache-2.0
"""What one tick hands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernob.model.flows import FlowRow
from kernob.model.health import Coverage, HookReport, MapUsage, ProgramRuns
from kernob.model.scores import Dependency


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the agent knew at the end of one tick; immutable, shared by all readers.

    `window_s` is the length of the interval the rates stand for. `losses` maps kernob.cause to a
    cumulative count, `suppressed_events` counts those that only a summary tells, which are not lost.
    """

    time_unix_ns: int
    started_unix_ns: int
    window_s: float
    host: str
    flows: tuple[FlowRow, ...]
    hooks: tuple[HookReport, ...] = ()
    maps: tuple[MapUsage, ...] = ()
    losses: dict[str, int] = field(default_factory=dict)
    coverage: tuple[Coverage, ...] = ()
    runs: tuple[ProgramRuns, ...] = ()
    suppressed_events: int = 0
    scores: Mapping[Dependency, float] = field(default_factory=dict)
    """The composite score of what has one (docs/scores.md), 0 to 1."""
