# SPDX-License-Identifier: Apache-2.0
"""The service map for other programs: Graphviz, Mermaid, JSON, and one page that needs nothing else.

In: a document of the agent or the store, whose strings may come from anybody. Out: text. Called by `ui.map`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Final

from kernob.model import EdgeRow
from kernob.view import printable

_LIBRARY: Final = "cytoscape.min.js"


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A node of the map; texts are safe to print."""

    id: str
    kind: str
    title: str
    node_class: str

    @property
    def host(self) -> str:
        """The host it is on, "" for what is elsewhere: a host may have any name, also dns or ip."""
        if self.kind == "service" or (self.id != f"ip/{self.title}" and self.kind == "address"):
            return self.id.partition("/")[0]
        return ""


@dataclasses.dataclass(frozen=True, slots=True)
class Edge(EdgeRow):
    """An edge of the map, with its scores by dimension where it has any; texts are safe to print."""

    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """A map; every edge's ends are among the nodes."""

    nodes: dict[str, Node]
    edges: tuple[Edge, ...]

    def hosts(self) -> set[str]:
        """Hosts that have services in it."""
        return {node.host for node in self.nodes.values() if node.host}

    def narrowed(self, host: str = "", edge_class: str = "") -> Graph:
        """Only edges that touch this host, and of this class; "" for all."""
        mine = {name for name, node in self.nodes.items() if node.host == host}
        edges = tuple(
            edge
            for edge in self.edges
            if (not host or {edge.source, edge.target} & mine)
            and (not edge_class or edge_class == edge.edge_class)
        )
        kept = {name for edge in edges for name in (edge.source, edge.target)}
        return Graph({name: node for name, node in self.nodes.items() if name in kept}, edges)


def graph_of(document: Mapping[str, Any]) -> Graph:
    """Reads a document. Raises ValueError where it is none."""
    shown = functools.lru_cache(None)(lambda text: printable(str(text)))
    try:
        nodes = {}
        for row in document["nodes"]:
            name = shown(row["id"])
            nodes[name] = Node(name, str(row["kind"]), shown(row["title"]), shown(row["node_class"]))
        wanted = [field.name for field in dataclasses.fields(Edge)]
        edges = []
        for row in document["edges"]:
            values = {name: row[name] for name in wanted if name in row}
            for name in ("source", "target", "edge_class", "address"):
                values[name] = shown(values[name])
            edges.append(Edge(**values))
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no service map: {error}") from None
    return Graph(nodes, tuple(e for e in edges if e.source in nodes and e.target in nodes))


def as_json(graph: Graph) -> str:
    """One document: nodes, edges."""
    nodes = [_fields(node) for node in graph.nodes.values()]
    edges = [_fields(edge) for edge in graph.edges]
    return json.dumps({"nodes": nodes, "edges": edges}, indent=1) + "\n"


def as_dot(graph: Graph) -> str:
    """Graphviz: `kernob map --format dot | dot -Tsvg > map.svg`."""
    lines = ["digraph services {", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
    for node in graph.nodes.values():
        shape = "" if node.kind == "service" else ", shape=ellipse"
        lines.append(f"  {_quoted(node.id)} [label={_quoted(node.title)}{shape}];")
    for edge in graph.edges:
        colour = ", color=red" if edge.failures else ""
        label = _quoted(str(edge.port or ""))
        lines.append(f"  {_quoted(edge.source)} -> {_quoted(edge.target)} [label={label}{colour}];")
    return "\n".join([*lines, "}", ""])


def as_mermaid(graph: Graph) -> str:
    """Mermaid: for a fence in Markdown."""
    numbers = {name: f"n{number}" for number, name in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for name, node in graph.nodes.items():
        opening, closing = ("[", "]") if node.kind == "service" else ("([", "])")
        lines.append(f'  {numbers[name]}{opening}"{_entities(node.title)}"{closing}')
    for edge in graph.edges:
        label = f'|"{edge.port}"|' if edge.port else ""
        lines.append(f"  {numbers[edge.source]} -->{label} {numbers[edge.target]}")
    return "\n".join([*lines, ""])


def as_html(graph: Graph) -> str:
    """One page that needs no network: the library, the data and the script stand in it."""
    assets = resources.files("kernob.ui") / "assets"
    library = (assets / _LIBRARY).read_text(encoding="utf-8")
    page = (assets / "map.html").read_text(encoding="utf-8")
    # "<" cannot end the script or begin a comment in it
    data = json.dumps(
        {
            "nodes": [_fields(node) for node in graph.nodes.values()],
            "edges": [_fields(edge) for edge in graph.edges],
        }
    ).replace("<", "\\u003c")
    head, _, rest = page.partition("/*LIBRARY*/")
    middle, _, tail = rest.partition("/*DATA*/null")
    return f"{head}{library}{middle}{data}{tail}"


def _fields(part: Node | Edge) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.__dataclass_fields__}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _entities(text: str) -> str:
    return "".join(c if c.isalnum() or c in " .:-_/,()" else f"#{ord(c)};" for c in text)


FORMATS: Final[Mapping[str, Callable[[Graph], str]]] = {
    "dot": as_dot,
    "mermaid": as_mermaid,
    "json": as_json,
    "html": as_html,
}
