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
from grafana.query import HOST, dashed, for_each, select, total

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
# stands twice costs twice. So figures are joined to edges as late and as seldom as can be.

SEEN = "(topk(1, tlast_over_time(kernob:map:node[$__range])) by (id) * 0 + 1)"
"""Nodes seen in the range, under their newest title: 1."""
ON = "on (host_name,metrics_id)"


def _edges() -> str:
    """Edges seen in the range, once each: 1."""
    seen = select("kernob:map:edge", HOST, CLASS)
    return f"(topk(1, tlast_over_time({seen}[$__range])) by (id) * 0 + 1)"


def _ends() -> str:
    """Nodes at the ends of these edges: 1."""
    used = f'(label_copy({_edges()}, "source", "id") or label_copy({_edges()}, "target", "id"))'
    return f"({SEEN} and on (id) {used})"


def _of_edge(metric: str, *matchers: str) -> str:
    """Growth of a counter in the range by edge, under the label that edges know it by."""
    grown = total(select(metric, HOST, *matchers), ("host_name", "id"))
    return f'label_move({grown}, "id", "metrics_id")'


SENT = _of_edge("kernob_map_edge_io_bytes_total", 'network_io_direction="transmit"')
RECEIVED = _of_edge("kernob_map_edge_io_bytes_total", 'network_io_direction="receive"')
BYTES = _of_edge("kernob_map_edge_io_bytes_total")
CONNECTIONS = _of_edge("kernob_map_edge_connections_total")
FAILURES = _of_edge("kernob_map_edge_failures_total")
FAILING = f"({FAILURES} / ({CONNECTIONS} > 0) > 0.05)"


def _on(edges: str, figure: str) -> str:
    """`figure` of each of the `edges`, 0 where it has none."""
    return f"({edges} * {ON} group_left () {figure} or {edges} * 0)"


# ---- panels --------------------------------------------------------------------------------------


def _glance() -> Iterator[Panel]:
    for title, says, query in (
        ("Nodes", "Services, destinations and clients seen in the range on the screen.", _ends()),
        ("Edges", "Who connects to whom, on which port, in the range on the screen.", _edges()),
    ):
        yield look.stat(
            Text(title, says, EMPTY, "none"), look.COUNT, STAT, look.at_end(f"count({query})", title)
        )
    text = Text(
        "Failing edges", "Edges on which more than a twentieth of all attempts failed.", EMPTY, "none"
    )
    failing = look.at_end(f"count({_edges()} and {ON} {FAILING}) or 0 * count({_edges()})", text.title)
    yield look.stat(text, look.COUNT, STAT, failing).thresholds(look.thresholds({1.0: WARN}))
    text = Text(
        "New destinations",
        "Destinations that services never talked to before, in the last hour, and nobody accepted.",
        EMPTY,
        "none",
    )
    new = look.at_end(f"count({_recent('1h')} > time() - 3600) or 0 * count({_edges()})", text.title)
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
        f"sum by (target) (e * {ON} group_left () {figure})" for figure in (CONNECTIONS, FAILURES)
    )
    health = f'1 - label_move({failed} / ({calls} > 0), "target", "id")'
    return (
        f"WITH (e = {_edges()}, n = {_ends()}, h = {health}) "
        'label_copy((n * on (id) group_left () h) or n, "kernob_node_class", "detail__class")'
    )


def _edge_rows() -> str:
    """Edges as thick as they are busy, with what the panel writes on them; both ends are among the nodes."""
    amount = (
        f'count_values("secondarystat", round({BYTES} / $__range / 1000, 0.1)) by (host_name, metrics_id)'
    )
    wide = (
        f"clamp(log10({BYTES} / $__range + 1) * 1.5, 1, 9) * {ON} group_left (secondarystat) "
        f'label_join(label_set({amount}, "kb", "kB/s"), "secondarystat", " ", "secondarystat", "kb")'
    )
    bad, good = f"w and {ON} {FAILING}", f"w unless {ON} {FAILING}"
    told = f'label_set({bad}, "color", "red") or label_set({good}, "color", "gray")'
    return (
        f'WITH (e = {_edges()} and on (source) label_copy({SEEN}, "id", "source") '
        f'and on (target) label_copy({SEEN}, "id", "target"), w = {wide}, t = {told}) '
        f"label_copy((e * {ON} group_left (secondarystat, color) t) "
        'or on (id) label_set(e, "color", "gray", "secondarystat", "0 kB/s"), "server_port", "mainstat")'
    )


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
    edges = f"group by ({EDGE}) ({_edges()})"
    worst = f"topk(100, {_on(edges, BYTES)})"
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
    for ref, figure in (("B", SENT), ("C", RECEIVED), ("D", CONNECTIONS), ("E", FAILURES)):
        queries.append(look.rows(dashed(for_each(worst, _on(edges, figure)), "server_port"), ref))
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
