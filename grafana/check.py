# SPDX-License-Identifier: Apache-2.0
"""Runs every query of the dashboards against VictoriaMetrics, with variables replaced as Grafana does.

In: the generated JSON, VictoriaMetrics' address, a time range. Out: a `Run` for each query of a panel, a
variable or an annotation. Called by the stack's tests, and by hand:

    python -m grafana.check http://127.0.0.1:8428 [minutes]

prints one line a query, and exits with 1 if one failed or found nothing. Needs no Grafana.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

DASHBOARDS = Path(__file__).resolve().parent / "dashboards"
PANEL_POINTS = 600
"""Points Grafana asks for in a panel half of a screen wide (maxDataPoints is its width in pixels)."""

_TIMEOUT_S = 30
_LABEL_VALUES = re.compile(r"label_values\((?:(.+),\s*)?([a-zA-Z_]\w*)\)")
_VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$([A-Za-z_]\w*)")
"""Grafana leaves alone what is no variable of its own: the $1 of label_replace."""
_SPECIAL = re.compile(r"[$^*{}\[\]'+?.()|]")

Get = Callable[[str, Mapping[str, Any]], Any]
"""Path and parameters -> `data` of the answer. Raises RuntimeError with what the server said."""


@dataclass(frozen=True)
class Range:
    """What is on the screen: Unix times in seconds."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> int:
        """Its length."""
        return round(self.end_s - self.start_s)


@dataclass(frozen=True)
class Run:
    """One query and what came of it. `result` is what Prometheus' API gives (series, or label values)."""

    dashboard: str
    place: str
    ref: str
    kind: str  # range, instant, variable, annotation
    expression: str
    result: tuple[Any, ...] = ()
    error: str = ""

    @property
    def is_empty(self) -> bool:
        """No series, or none with a finite value."""
        if self.kind == "variable":
            return not self.result
        return not any(_has_value(series) for series in self.result)

    def __str__(self) -> str:
        found = self.error or ("EMPTY" if self.is_empty else f"{len(self.result)} found")
        return f"{self.dashboard} | {self.place} {self.ref} ({self.kind}): {found} | {self.expression}"


def load(directory: Path = DASHBOARDS) -> dict[str, dict[str, Any]]:
    """The dashboards by uid. Raises FileNotFoundError where there is none."""
    boards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))]
    if not boards:
        raise FileNotFoundError(f"{directory}: no dashboard")
    return {board["uid"]: board for board in boards}


def run(
    url: str,
    shown: Range,
    chosen: Mapping[str, list[str]] | None = None,
    boards: Mapping[str, dict[str, Any]] | None = None,
) -> list[Run]:
    """Run everything; `chosen` values of variables (default: all of them), `boards` instead of the files."""
    get = getter(url)
    found: list[Run] = []
    for uid, board in (boards if boards is not None else load()).items():
        replaced: dict[str, str] = {}
        variables = [each for each in board["templating"]["list"] if each["type"] == "query"]
        found += [_variable(get, uid, each, replaced, shown, chosen or {}) for each in variables]
        found += [_annotation(get, uid, query, replaced, shown) for query in board["annotations"]["list"]]
        found += [_target(get, uid, panel, query, replaced, shown) for panel, query in targets(board)]
    return found


def targets(board: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every query of every panel, those within collapsed rows too."""
    for panel in board["panels"]:
        for each in (panel, *panel.get("panels", ())):
            for query in each.get("targets", ()):
                yield each, query


def getter(url: str) -> Get:
    """Asks VictoriaMetrics at `url` (a base address)."""
    session = requests.Session()

    def get(path: str, parameters: Mapping[str, Any]) -> Any:
        answer = session.get(f"{url.rstrip('/')}{path}", params=dict(parameters), timeout=_TIMEOUT_S)
        if answer.status_code != requests.codes.ok:
            raise RuntimeError(f"HTTP {answer.status_code}: {answer.text.strip()[:300]}")
        return answer.json()["data"]

    return get


# ---- one query -----------------------------------------------------------------------------------


def _variable(
    get: Get,
    uid: str,
    variable: Mapping[str, Any],
    replaced: dict[str, str],
    shown: Range,
    chosen: Mapping[str, list[str]],
) -> Run:
    """Ask for a variable's values, and note in `replaced` what stands for it in queries."""
    text = variable["query"]["query"]
    place, name = f"variable {variable['name']}", variable["name"]
    match = _LABEL_VALUES.fullmatch(text)
    if match is None:
        return Run(uid, place, "", "variable", text, error="only label_values(series, label) is known")
    series, label = interpolate(match[1] or "", replaced, shown), match[2]
    window = {"start": shown.start_s, "end": shown.end_s, "match[]": series}
    try:
        values = get(f"/api/v1/label/{label}/values", window)
    except RuntimeError as error:
        return Run(uid, place, "", "variable", series, error=str(error))
    kept = tuple(filtered(values, variable.get("regex", "")))
    wanted = chosen.get(name)
    if wanted is None and "allValue" in variable:
        replaced[name] = variable["allValue"]
    else:
        replaced[name] = one_of(wanted if wanted is not None else kept)
    return Run(uid, place, "", "variable", f"label_values({series}, {label})", kept)


def _annotation(
    get: Get, uid: str, query: Mapping[str, Any], replaced: Mapping[str, str], shown: Range
) -> Run:
    expression = interpolate(query["expr"], replaced, shown, query["step"])
    return _ask(get, Run(uid, query["name"], "", "annotation", expression), shown, _seconds(query["step"]))


def _target(
    get: Get,
    uid: str,
    panel: Mapping[str, Any],
    query: Mapping[str, Any],
    replaced: Mapping[str, str],
    shown: Range,
) -> Run:
    least = query.get("interval", "15s")
    expression = interpolate(query["expr"], replaced, shown, least)
    kind = "instant" if query.get("instant") else "range"
    asked = Run(uid, panel["title"], query["refId"], kind, expression)
    return _ask(get, asked, shown, step_s(shown, least))


def _ask(get: Get, asked: Run, shown: Range, step: int) -> Run:
    if asked.kind == "instant":
        path, parameters = "/api/v1/query", {"time": shown.end_s}
    else:
        path = "/api/v1/query_range"
        start_s, end_s = (int(at_s // step) * step for at_s in (shown.start_s, shown.end_s))
        parameters = {"start": start_s, "end": end_s, "step": step}  # whole steps, as Grafana asks
    try:
        data = get(path, {"query": asked.expression, **parameters})
    except RuntimeError as error:
        return Run(asked.dashboard, asked.place, asked.ref, asked.kind, asked.expression, error=str(error))
    found = tuple(data["result"])
    return Run(asked.dashboard, asked.place, asked.ref, asked.kind, asked.expression, found)


def _has_value(series: Mapping[str, Any]) -> bool:
    values = [series["value"]] if "value" in series else series["values"]
    return any(value not in ("NaN", "+Inf", "-Inf") for _time, value in values)


# ---- as Grafana does -----------------------------------------------------------------------------


def interpolate(text: str, replaced: Mapping[str, str], shown: Range, least_step: str = "15s") -> str:
    """Put values where variables stand; those of Grafana itself too. Raises KeyError for an unknown one.

    >>> interpolate('x{host=~"$host"}[$__rate_interval]', {"host": ".+"}, Range(0, 3600), "30s")
    'x{host=~".+"}[2m0s]'
    """
    step, least = step_s(shown, least_step), _seconds(least_step)
    known = {
        **replaced,
        "__interval": _duration(step),
        "__rate_interval": _duration(max(step + least, 4 * least)),
        "__range": f"{shown.seconds}s",
    }
    return _VARIABLE.sub(lambda match: known[match[1] or match[2]], text)


def step_s(shown: Range, least: str) -> int:
    """Step of a range query in seconds: a point a pixel, but at least `least`."""
    return max(_seconds(least), round(shown.seconds / PANEL_POINTS))


def one_of(values: Iterable[str]) -> str:
    r"""Regular expression of these values as Grafana's Prometheus data source writes it into a string.

    >>> one_of(["a.b"])
    'a\\\\.b'
    >>> one_of(["a", "b"])
    '(a|b)'
    """
    escaped = [_SPECIAL.sub(r"\\\\\g<0>", value.replace("\\", "\\\\\\\\")) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def filtered(values: Iterable[str], regex: str) -> Iterator[str]:
    """Values that a variable's `regex` (`/.../`, or empty for all) matches.

    Raises ValueError for one with a group, whose text Grafana would take for the value.
    """
    pattern = re.compile(regex.strip("/")) if regex else None
    if pattern is not None and pattern.groups:
        raise ValueError(f"{regex} captures: Grafana would take the first group for the value")
    return (value for value in values if pattern is None or pattern.search(value))


def _seconds(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def _duration(seconds: int) -> str:
    """As Go prints it: 2m0s."""
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def main(arguments: list[str]) -> int:
    """Print every query and what it found."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m grafana.check http://127.0.0.1:8428 [minutes]", file=sys.stderr)
        return 2
    minutes = float(arguments[1]) if len(arguments) > 1 else 60.0
    now = time.time()
    runs = run(arguments[0], Range(now - minutes * 60, now))
    for each in runs:
        print(each)
    wrong = [each for each in runs if each.error or each.is_empty]
    print(f"{len(runs)} queries, {len(wrong)} failed or empty")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
