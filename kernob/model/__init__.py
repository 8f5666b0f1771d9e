# SPDX-License-Identifier: Apache-2.0
"""The nouns every part of Kernob shares: frozen, typed, without behaviour that needs a kernel.

Data enters here from `probes` (decoded map rows), travels through `state` and `derive`, and leaves
through `export` (OTLP) and `ui` (screens). This module imports nothing of ours but `errors`.
"""

from __future__ import annotations

from kernob.model.events import EVENT_KINDS, Event, EventQuery, Severity
from kernob.model.flows import (
    FlowRow,
    Name,
    NameSource,
    PeerClass,
    ProcessInfo,
    ProcessKey,
    Role,
    Transport,
)
from kernob.model.health import (
    Attempt,
    Coverage,
    DoctorReport,
    HookReport,
    MapUsage,
    ProbeState,
    ProgramRuns,
    Pulse,
)
from kernob.model.metrics import Attributes, AttributeValue, MetricKind, MetricSpec
from kernob.model.scores import COMPOSITE, DIMENSIONS, Dependency, Dimension, ScoreRules
from kernob.model.service_map import (
    DestinationRow,
    DestinationState,
    EdgeKey,
    EdgeRow,
    Link,
    MapNode,
    NodeKind,
    NodeRow,
    edge_id,
)
from kernob.model.snapshot import Snapshot
from kernob.model.tcp import NO_FACTS, ClosedBy, Drop, Fate, Outcome, Resent, TcpFacts, Timeout

__all__ = [
    "COMPOSITE",
    "DIMENSIONS",
    "EVENT_KINDS",
    "NO_FACTS",
    "Attempt",
    "AttributeValue",
    "Attributes",
    "ClosedBy",
    "Coverage",
    "Dependency",
    "DestinationRow",
    "DestinationState",
    "Dimension",
    "DoctorReport",
    "Drop",
    "EdgeKey",
    "EdgeRow",
    "Event",
    "EventQuery",
    "Fate",
    "FlowRow",
    "HookReport",
    "Link",
    "MapNode",
    "MapUsage",
    "MetricKind",
    "MetricSpec",
    "Name",
    "NameSource",
    "NodeKind",
    "NodeRow",
    "Outcome",
    "PeerClass",
    "ProbeState",
    "ProcessInfo",
    "ProcessKey",
    "ProgramRuns",
    "Pulse",
    "Resent",
    "Role",
    "ScoreRules",
    "Severity",
    "Snapshot",
    "TcpFacts",
    "Timeout",
    "Transport",
    "edge_id",
]
