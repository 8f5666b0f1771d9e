# SPDX-License-Identifier: Apache-2.0
"""Service map: who talks to whom, on all hosts, and which of it fails.

The panel wants two tables: nodes and edges, whose labels already have the names it reads (id, title, source),
and numbers in fields of their own name, which calculateField's alias makes in every release.
"""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.builders.nodegraph import Panel as NodeGraph
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig

from grafana import frame, look
from grafana.look import BAD, WARN, Column, Panel, Place, Text
from grafana.query import HOST, dashed, select, total

UID = "kernob-map"

GRAPH, STAT, WIDE = Place(24, 20), Place(6, 4), Place(24, 12)
CLASS = 'kernob_peer_class=~"$class"'
EDGE = "host_name,source,target,server_port,kernob_peer_class,metrics_id"
"""Labels of an edge that a table shows; what else it has may change while it is the same edge."""

EMPTY = (
    "nothing was seen, or vmalert does not evaluate its rules (rules/map.yaml makes the map of all hosts)."
)


def board() -> Dashboard:
    """The dashboard."""
    about = "Who talks to whom, discovered from connections: every service, destination and client."
    new = frame.new(UID, "Service map", about, since="now-3h")
    new.with_variable(frame.host("kernob_map_node")).with_variable(frame.peer_class())
    for panel in _panels():
        new.with_panel(panel)
    return new


def _panels() -> Iterator[Panel]:
    yield from _glance()
    yield _graph()
    yield _table()
    yield _new()


# ---- pieces --------------------------------------------------------------------------------------


# MetricsQL puts in the text of a WITH wherever its name stands, and evaluates it there: at 10,000 edges what
# stands twice costs twice; and all that runs at once shares a quarter of the memory that VictoriaMetrics was
# given, 1 kB a series. So a figure stands once wherever that can be (`python -m benchmarks.map_queries`).

SEEN = "(topk(1, tlast_over_time(kernob:map:node[$__range])) by (id) * 0 + 1)"
"""Nodes seen in the range, under their newest title: 1."""
ON = "on (host_name,metrics_id)"


def edges_seen() -> str:
    """Edges seen in the range, once each: 1. Not those that later were known to be others."""
    seen = select("kernob:map:edge", HOST, CLASS)
    otherwise = select("", '__name__=~"kernob:map:(joined|explained|withdrawn)"', HOST)
    last = f"union(tlast_over_time({seen}[$__range]), tlast_over_time({otherwise}[$__range]))"
    return f'(label_match(topk(1, {last}) by (id), "source", ".+") * 0 + 1)'


def _ends() -> str:
    """Nodes at the ends of these edges, once each, by their id only: 1."""
    ends = ", ".join(f'label_copy({edges_seen()}, "{end}", "id")' for end in ("source", "target"))
    return f"group({ends}) by (id)"


def _grown(metric: str, *matchers: str) -> str:
    """Growth of a counter in the range by edge."""
    return total(select(metric, HOST, *matchers), ("host_name", "id"))


def _of_edge(metric: str, *matchers: str) -> str:
    """The same, under the label that edges know it by."""
    return f'label_move({_grown(metric, *matchers)}, "id", "metrics_id")'


BYTES = "kernob_map_edge_io_bytes_total"
CONNECTIONS = "kernob_map_edge_connections_total"
FAILURES = "kernob_map_edge_failures_total"
FAILING = f"({_grown(FAILURES)} / ({_grown(CONNECTIONS)} > 0) > bool 0.05)"
"""Of an edge with attempts to connect: 1 where more than a twentieth failed, else 0. By `id`."""


# ---- panels --------------------------------------------------------------------------------------


def _glance() -> Iterator[Panel]:
    for title, says, query in (
        ("Nodes", "Services, destinations and clients seen in the range on the screen.", _ends()),
        ("Edges", "Who connects to whom, on which port, in the range on the screen.", edges_seen()),
    ):
        yield look.stat(
            Text(title, says, EMPTY, "none"), look.COUNT, STAT, look.at_end(f"count({query})", title)
        )
    text = Text(
        "Failing edges", "Edges on which more than a twentieth of all attempts failed.", EMPTY, "none"
    )
    failing = f'{edges_seen()} * {ON} group_left () label_move({FAILING}, "id", "metrics_id")'
    yield look.stat(text, look.COUNT, STAT, look.at_end(f"sum({failing})", text.title)).thresholds(
        look.thresholds({1.0: WARN})
    )
    text = Text(
        "New destinations",
        "Destinations that services never talked to before, in the last hour, and nobody accepted.",
        EMPTY,
        "none",
    )
    new = look.at_end(f"count({_recent('1h')} > time() - 3600) or 0 * count({edges_seen()})", text.title)
    yield look.stat(text, look.COUNT, STAT, new).thresholds(look.thresholds({1.0: WARN}))


def _graph() -> NodeGraph:
    text = Text(
        "Service map",
        "An arrow leads from who connects to who answers. A node's ring is the share of connections to it "
        "that did not fail; an edge is as thick as it is busy, and red where more than a twentieth "
        "failed. On the edge: its port, kB a second. A click leads to the connections behind it.",
        EMPTY,
    )
    panel = look.node_graph(text, GRAPH, look.rows(_node_rows(), "A"), look.rows(_edge_rows(), "B"))
    # with a time in both, calculateField would join nodes and edges to one table first
    no_time = {"exclude": {"names": ["Time"]}}
    panel.with_transformation(DataTransformerConfig(id_val="filterFieldsByName", options=no_time))
    for left, operator, right, alias in (
        ("Value #A", "*", "1", "arc__good"),
        ("1", "-", "Value #A", "arc__bad"),
        ("Value #B", "*", "1", "thickness"),
    ):
        panel.with_transformation(_number(left, operator, right, alias))
    panel.override_by_name(*look.color_of("arc__good", look.CALM))
    panel.override_by_name(*look.color_of("arc__bad", look.BAD))
    service = frame.filtered("kernob-tcp", "service", "kernob_service", "host")
    there = frame.filtered("kernob-tcp", "destination", "server_address", "host")
    panel.override_by_name(*look.link_of("kernob_service", "What becomes of its connections", service))
    return panel.override_by_name(*look.link_of("server_address", "Connections to this destination", there))


def _node_rows() -> str:
    """Nodes with the share of connections to them that did not fail; 1 where nobody connects."""
    calls, failed = (
        f"sum by (target) ({edges_seen()} * {ON} group_left () {_of_edge(metric)})"
        for metric in (CONNECTIONS, FAILURES)
    )
    lost = f'label_set(label_move({failed} / ({calls} > 0), "target", "id"), "figure", "lost")'
    return (
        f"label_copy({SEEN} - on (id) group_left () sum({lost}, {_ends()} * 0) by (id), "
        '"kernob_node_class", "detail__class")'
    )


_FAILS = 10**12
"""Added to the kB a second of an edge that fails: one number carries both into a label."""


def _edge_rows() -> str:
    """Edges as thick as they are busy, with what the panel writes on them; both ends are among the nodes."""
    figures = (
        f"round({_grown(BYTES)} / $__range / 1000, 0.1)",
        f'label_set({FAILING} * {_FAILS}, "figure", "fails")',
        f'label_set(label_move({edges_seen()} * 0, "metrics_id", "id"), "figure", "none")',
    )
    told = f'count_values("secondarystat", sum({",".join(figures)}) by (host_name, id)) by (host_name, id)'
    told = f'clamp(log10(label_value({told}, "secondarystat") % {_FAILS} * 1000 + 1) * 1.5, 1, 9)'
    told = f'label_set(label_move({told}, "id", "metrics_id"), "color", "gray")'
    for label, shown, source, pattern in (
        ("secondarystat", "f$1", "secondarystat", "1([0-9]{12}([.][0-9]+)?)"),
        ("color", "red", "secondarystat", "f.*"),
        ("secondarystat", "$1 kB/s", "secondarystat", "f?0*([0-9]+([.][0-9]+)?)"),
    ):
        told = f'label_replace({told}, "{label}", "{shown}", "{source}", "{pattern}")'
    ends = (f'on ({end}) label_copy({SEEN}, "id", "{end}")' for end in ("source", "target"))
    edges = " and ".join((edges_seen(), *ends))
    return f'label_copy(({edges}) * {ON} group_left (secondarystat, color) {told}, "server_port", "mainstat")'


def _number(left: str, operator: str, right: str, alias: str) -> DataTransformerConfig:
    """A field of its own name out of a query's value; frames without that value stay as they are."""
    binary = {"left": left, "operator": operator, "right": right, "reducer": "sum"}
    options = {"mode": "binary", "alias": alias, "binary": binary, "replaceFields": False}
    return DataTransformerConfig(id_val="calculateField", options=options)


def _table() -> Panel:
    text = Text(
        "Edges by traffic",
        "The edges with most bytes in the range on the screen, and how many of their connections failed.",
        EMPTY,
        "none",
    )
    edges = f"group by ({EDGE}) ({edges_seen()})"
    worst = f"topk(100, {edges} * {ON} group_left () {_of_edge(BYTES)})"
    columns = (
        Column("source", "From"),
        Column("target", "To"),
        Column("server_port", "Port", width=70),
        Column("kernob_peer_class", "Class", width=90),
        Column("Value #A", "Bytes", look.BYTES, 90, sorted=True),
        Column("Value #B", "Sent", look.BYTES, 90),
        Column("Value #C", "Received", look.BYTES, 90),
        Column("Value #D", "Connections", look.COUNT, 110),
        Column("Value #E", "Failed", look.COUNT, 80, levels={1.0: BAD}),
        Column("host_name", "Host", width=90),
    )
    queries = [look.rows(dashed(worst, "server_port"), "A")]
    figures = (
        _of_edge(BYTES, 'network_io_direction="transmit"'),
        _of_edge(BYTES, 'network_io_direction="receive"'),
        _of_edge(CONNECTIONS),
        _of_edge(FAILURES),
    )
    for ref, figure in zip("BCDE", figures, strict=True):
        queries.append(look.rows(f"{figure} and {ON} {worst}", ref))
    return look.table(text, WIDE, columns, *queries)


def _recent(window: str) -> str:
    """When destinations that are new were seen first."""
    new = select("kernob_destination_first_seen_seconds", HOST, 'kernob_destination_state="new"')
    return f"last_over_time({new}[{window}])"


def _happened(variable: str, column: str) -> tuple[str, str]:
    """A link to what became of the connections of a row's service or destination."""
    return "What becomes of its connections", frame.filtered("kernob-tcp", variable, column, "host")


def _new() -> Panel:
    text = Text(
        "New destinations of the week",
        "What services never talked to before, the newest first. As it should be: `kernob destinations "
        "accept`.",
        "no service talked to anybody new after its first day, or all of it was accepted.",
        "nothing new",
    )
    columns = (
        Column("Value", "First seen", "time:YYYY-MM-DD HH:mm:ss", 190, sorted=True),
        Column("kernob_service", "Service", link=_happened("service", "Service")),
        Column("server_address", "Destination", link=_happened("destination", "Destination")),
        Column("server_port", "Port", width=70),
        Column("host_name", "Host", width=90),
    )
    latest = f"topk(50, {_recent('$__range')}) * 1000"
    return look.table(text, WIDE, columns, look.rows(dashed(latest, "server_address", "server_port")))
