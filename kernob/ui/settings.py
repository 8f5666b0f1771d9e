# SPDX-License-Identifier: Apache-2.0
"""`kernob config`: every setting, its value, and where it came from. Settings enter, text leaves.

Secrets never leave: header values, the client's key, a user and password inside an endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernob.config import MASK, SETTINGS, Settings, without_credentials
from kernob.config_values import Number

# Values are shown in the unit they are set in: OTEL_ times in milliseconds.
_UNITS = {
    setting.variable: setting.kind.noun.rpartition("number of ")[2]
    for setting in SETTINGS
    if isinstance(setting.kind, Number)
}
_SCALES = {setting.field: setting.kind.scale for setting in SETTINGS if isinstance(setting.kind, Number)}

_VALUE_MOST = 24
"""Longer values push their source to the right: most lines fit 80 columns."""

JsonValue = str | int | float | bool | list[str] | dict[str, str] | None

# Fields (of each signal) whose value is not shown as it is.
_SHOWN: dict[str, Callable[[Any], JsonValue]] = {
    "headers": lambda headers: dict.fromkeys((name for name, _ in headers), MASK),
    "client_key": lambda path: None if path is None else MASK,
    "endpoint": without_credentials,
    "resource_attributes": dict,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One setting in force. `setting` is its environment variable, `source` as in Settings.origin."""

    setting: str
    value: JsonValue
    source: str


def rows(settings: Settings) -> list[Row]:
    """Return a row for each field of Settings, in the order of the documentation."""
    # The general variable of an exporter's option stands for its field; the source names the one that won.
    variables: dict[str, str] = {}
    for setting in SETTINGS:
        if setting.field in settings.origin:
            variables.setdefault(setting.field, setting.variable)
    variables["otlp.exporter"] = "OTEL_METRICS_EXPORTER"
    variables["otlp_logs.exporter"] = "OTEL_LOGS_EXPORTER"
    return [Row(variables[f], _value(settings, f), settings.origin[f]) for f in variables]


def _value(settings: Settings, field: str) -> JsonValue:
    owner, _, name = field.rpartition(".")
    value = getattr(getattr(settings, owner) if owner else settings, name)
    if name in _SHOWN:
        return _SHOWN[name](value)
    if isinstance(value, float):
        return value / _SCALES.get(field, 1)
    if isinstance(value, tuple):
        return list(value)
    plain: JsonValue = str(value) if isinstance(value, Path) else value
    return plain


def as_json(settings: Settings) -> str:
    """Return the rows as a JSON array of {"setting", "value", "source"}."""
    return json.dumps([asdict(row) for row in rows(settings)], indent=2)


def as_table(settings: Settings) -> str:
    """Return the rows as aligned columns; never cut, so that a terminal may wrap and a pipe gets all.

    Numbers stand with their unit: 10 seconds.
    """
    cells = [("SETTING", "VALUE", "SOURCE"), *((r.setting, _cell(r), _source(r)) for r in rows(settings))]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{min(widths[1], _VALUE_MOST)}}  {c}" for a, b, c in cells)


def _source(row: Row) -> str:
    """The variable's name is told apart only where another one than the row's own won."""
    return "environment" if row.source == f"environment {row.setting}" else row.source


def _cell(row: Row) -> str:
    value = row.value
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        text = ",".join(f"{key}={each}" for key, each in value.items())
    elif isinstance(value, list):
        text = ",".join(value)
    else:
        text = f"{value:.15g}" if isinstance(value, float) else str(value)
        text += f" {_UNITS[row.setting]}" if row.setting in _UNITS else ""
    return text if text.isprintable() else repr(text)[1:-1]
