# SPDX-License-Identifier: Apache-2.0
"""What a metric is: its name, unit, kind and attributes."""

from __future__ import annotations

import enum
from dataclasses import dataclass

AttributeValue = str | int | float | bool

Attributes = tuple[tuple[str, AttributeValue], ...]
"""Attribute pairs in a fixed order; the order is part of a series' identity."""


class MetricKind(enum.Enum):
    """How a metric's points combine over time (OTLP: Sum monotonic, Sum, Gauge, Histogram)."""

    COUNTER = "counter"
    UPDOWN = "updowncounter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric as it is documented and exported.

    `name` is dotted, without unit or `total`; `unit` is UCUM; `attributes` lists the keys that may
    stand on its points. `integer` says whether values are whole numbers (OTLP as_int) or floats.
    """

    name: str
    unit: str
    kind: MetricKind
    description: str
    attributes: tuple[str, ...] = ()
    integer: bool = True
