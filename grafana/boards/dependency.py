# SPDX-License-Identifier: Apache-2.0
"""Dependency health: how well destinations serve the services that use them, worst first, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.stat import Panel as Stat

from grafana import frame, look
from grafana.look import BAD, CALM, PLAIN, WARN, Column, Panel, Place, Text
from grafana.query import HOST, NOW, dashed, per_second, select, top

UID = "kernob-dependency"

SERVICE = 'kernob_service=~"$service"'
THERE = 'server_address=~"$destination"'
KEY = ("host_name", "kernob_service", "server_address", "server_port")
BY = ",".join(KEY)
DIMENSIONS = {
    "reliability": "Reliable",
    "latency": "Latency",
    "stability": "Stable",
    "packet_health": "Packets",
    "responsiveness": "Responds",
}
EXACT = "time:YYYY-MM-DD HH:mm:ss"
"""Grafana's unit for milliseconds since 1970."""
LEVELS = {0.0: BAD, 0.5: WARN, 0.9: CALM}
UNKNOWN = {"-1": ("·", PLAIN)}
"""No score: too few samples. It must not look like 0."""
NOT_ENOUGH = "nothing was used often enough to be scored (docs/scores.md)"

STAT, HALF, WIDE, TALL = Place(6, 4), Place(12, 9), Place(24, 9), Place(24, 12)


def board() -> Dashboard:
    """The dashboard."""
    about = "Scores of what services depend on, from 0 to 1: worst first, with what failed and when."
    new = frame.new(UID, "Dependency health", about).with_variable(frame.host("kernob_probe_attached_ratio"))
    new.with_variable(frame.service()).with_variable(frame.destination())
    for panel in _glance():
        new.with_panel(panel)
    for title, panels in (("Worst first", _tables()), ("Over time", _trends())):
        new.with_row(Row(title))
        for panel in panels:
            new.with_panel(panel)
    return new


def _now(metric: str, *matchers: str) -> str:
    """A gauge of the chosen hosts, services and destinations, as it stands."""
    return f"last_over_time({select(metric, HOST, SERVICE, THERE, *matchers)}[{NOW}])"


def _score(dimension: str) -> str:
    return _now("kernob_dependency_score_ratio", f'kernob_score_dimension="{dimension}"')


COMPOSITE = f"min by ({BY}) ({_score('composite')})"
FAILING = f"sum by ({BY}) ({_now('kernob_dependency_failing_now')})"
_PEAK = f"max_over_time({select('kernob_dependency_failing_now', HOST, SERVICE, THERE)}[$__interval])"
FAILING_MOST = f"max by ({BY}) (sum by ({BY}) ({_PEAK}), {FAILING})"
"""The most in each step of a curve: who calls in vain in its rhythm would seem well at each of its points."""


def _glance() -> Iterator[Panel]:
    text = Text(
        "Failing now",
        "Attempts to connect that have sent their SYN again and still wait: whom they call does not answer.",
        "nothing waits for an answer to its SYN.",
        "none",
    )
    yield _number(text, look.COUNT, f"sum({_now('kernob_dependency_failing_now')}) > 0", {1.0: BAD})
    text = Text(
        "Worst",
        "The lowest composite score of all, between 0 and 1.",
        f"{NOT_ENOUGH}.",
        "no score",
    )
    yield _number(text, look.SHARE, f"min({_score('composite')})", {0.5: WARN, 0.9: CALM}, BAD)
    for title, limit, levels in (("Below 0.5", 0.5, {1.0: BAD}), ("Below 0.9", 0.9, {1.0: WARN})):
        says = f"Dependencies with a composite score below {limit}."
        text = Text(title, says, f"none is, or {NOT_ENOUGH}.", "none")
        yield _number(text, look.COUNT, f"count({_score('composite')} < {limit})", levels)


def _number(text: Text, unit: str, expression: str, levels: Mapping[float, str], base: str = CALM) -> Stat:
    panel = look.stat(text, unit, STAT, look.at_end(expression, text.title))
    return panel.thresholds(look.thresholds(levels, base)).links([frame.see("TCP health", "kernob-tcp")])


def _events(variable: str, column: str) -> tuple[str, str]:
    """A link to what happened to the connections of a row's service or destination."""
    return "TCP health", frame.filtered("kernob-tcp", variable, column, "host")


def _or_unknown(ranking: str, expression: str) -> str:
    """`expression` for what `ranking` lists; -1 where it has no value."""
    return f"({expression} and {ranking}) or (0 * {ranking} - 1)"


def _tables() -> Iterator[Panel]:
    """Each dependency, then each destination over all who use it."""
    yield _dependencies()
    yield _destinations()


WORST = f"bottomk(50, {COMPOSITE})"


def _dependencies() -> Panel:
    text = Text(
        "Dependencies",
        "What services connect to, worst first; by service, destination and port. A dot: too few samples for "
        "a score. The reason is the commonest of the last ten minutes. `kernob score HOST` explains one.",
        f"{NOT_ENOUGH}.",
        "no score",
    )
    scores = [(name, f"min by ({BY}) ({_score(name)})") for name in DIMENSIONS]
    expressions, columns = _ranked(WORST, scores)
    columns[1:1] = [
        Column("kernob_service", "Service", link=_events("service", "Service")),
        Column("server_address", "Destination", link=_events("destination", "Destination")),
        Column("server_port", "Port", width=50),
    ]
    expressions |= _facts()
    columns += [
        Column("Value #G", "Failing", look.COUNT, 75, levels={1.0: BAD}),
        Column("error_type", "Reason", width=120),
        Column("Value #J", "Last failure", EXACT, 145, words={"0": ("·", PLAIN)}),
        Column("Value #H", "Samples", look.COUNT, 75),
        Column("host_name", "Host", width=70),
    ]
    optional = ("server_address", "server_port", "kernob_service")
    queries = [look.rows(dashed(each, *optional), ref) for ref, each in expressions.items()]
    return look.table(text, TALL, columns, *queries)


def _destinations() -> Panel:
    text = Text(
        "Destinations",
        "The same by hostname or address, over all services, ports and hosts that use it: the worst of them.",
        f"{NOT_ENOUGH}.",
        "no score",
    )
    by = "server_address"

    def scored(dimension: str) -> str:
        matcher = f'kernob_score_dimension="{dimension}"'
        series = select("kernob_destination_score_ratio", HOST, THERE, matcher)
        return f"min by ({by}) (last_over_time({series}[{NOW}]))"

    expressions, columns = _ranked(
        f"bottomk(30, {scored('composite')})", [(name, scored(name)) for name in DIMENSIONS]
    )
    columns.insert(1, Column(by, "Destination", link=_events("destination", "Destination")))
    queries = [look.rows(dashed(each, by), ref) for ref, each in expressions.items()]
    return look.table(text, WIDE, columns, *queries)


def _ranked(worst: str, scores: list[tuple[str, str]]) -> tuple[dict[str, str], list[Column]]:
    """Queries by their letter and columns: the ranking itself (A), and each dimension's score in it."""
    expressions = {"A": worst}
    columns = [Column("Value #A", "Score", look.COUNT, 65, levels=LEVELS, lowest_first=True)]
    for ref, (name, expression) in zip("BCDEF", scores, strict=True):
        expressions[ref] = _or_unknown(worst, expression)
        title = DIMENSIONS[name]
        columns.append(Column(f"Value #{ref}", title, look.COUNT, 66, levels=LEVELS, words=UNKNOWN))
    return expressions, columns


def _facts() -> dict[str, str]:
    """Of each of the worst: what fails now (G), samples (H), commonest reason (I), last failure (J)."""
    samples = _now("kernob_dependency_samples")
    failed = _now("kernob_dependency_last_failure_seconds")
    reasons = select("kernob_dependency_samples", HOST, SERVICE, THERE, 'error_type!=""')
    return {
        "G": f"({FAILING} and {WORST}) or 0 * {WORST}",
        "H": f"(sum by ({BY}) ({samples}) and {WORST}) or 0 * {WORST}",
        # one reason each; a dash where nothing failed, so that the column is always there
        "I": (
            f"(topk by ({BY}) (1, max by ({BY},error_type) (last_over_time({reasons}[{NOW}]))) "
            f'and on ({BY}) {WORST}) or on ({BY}) label_set(0 * {WORST}, "error_type", "-")'
        ),
        "J": f"(max by ({BY}) ({failed}) * 1000 and {WORST}) or 0 * {WORST}",
    }


def _trends() -> Iterator[Panel]:
    legend = "{{kernob_service}} → {{server_address}}:{{server_port}}"
    text = Text(
        "Scores of the worst",
        "The composite of the dependencies where it was lowest on average.",
        f"{NOT_ENOUGH}.",
        "no score",
    )
    worst = f"bottomk_avg(8, {COMPOSITE})"
    yield look.limited(
        look.lines(text, look.COUNT, HALF, look.over_time(worst, legend)).max(1), {0.5: BAD}, PLAIN
    )
    text = Text(
        "By dimension",
        "The lowest score of each dimension among what is chosen above: what it is that gets worse.",
        f"{NOT_ENOUGH}.",
        "no score",
    )
    dimensions = _now("kernob_dependency_score_ratio", 'kernob_score_dimension!="composite"')
    lowest = f"min by (kernob_score_dimension) ({dimensions})"
    yield look.lines(text, look.COUNT, HALF, look.over_time(lowest, "{{kernob_score_dimension}}")).max(1)
    text = Text(
        "Failing over time",
        "Attempts that sent their SYN again and still wait, by whom they call: the most in each step.",
        "nothing waited for an answer to its SYN.",
        "none",
    )
    yield look.lines(text, look.COUNT, HALF, look.over_time(f"topk_max(8, {FAILING_MOST}) > 0", legend))
    text = Text(
        "Waits in vain",
        "Waits a second that ran their full timeout on an answer that never came, by whom it was due from.",
        "no answer failed to come, or no hook for waits could be attached (see Kernob itself, Hooks).",
        "none",
    )
    waits = select("kernob_wait_timeouts_total", HOST, SERVICE, THERE)
    by = ("kernob_service", "server_address")
    vain = top(8, per_second(waits, by), "kernob_service=all others")
    yield look.lines(text, "cps", HALF, look.over_time(vain, "{{kernob_service}} → {{server_address}}"))
