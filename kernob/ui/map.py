# SPDX-License-Identifier: Apache-2.0
"""`kernob map`: who talks to whom, as a tree in the terminal or for other programs.

The map comes from the running agent, or where none runs out of its store. Called by `commands.map`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kernob.config import Settings
from kernob.errors import KernobError
from kernob.ui.client import agent_listens, fetch_report
from kernob.ui.map_formats import FORMATS, Edge, Graph, graph_of
from kernob.view import printable

ReadMap = Callable[[Path, int], Mapping[str, Any]]
"""The document of a state directory, of what was seen since a Unix time in ns."""

_COLOURS: Final = {
    "localhost": "2", "internal": "36", "external": "33", "self-hosted": "35", "unknown": "31",
}  # fmt: skip
_BAD: Final = "1;31"
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_TITLE_MOST: Final = 48


def run_map(
    settings: Settings,
    *,
    read_store: ReadMap,
    since_unix_ns: int,
    kind: str = "tree",
    host: str = "",
    edge_class: str = "",
) -> int:
    """Print the map and return the exit code.

    Raises AgentUnreachableError, PreconditionError, StoreError, and KernobError where there is no such host.
    """
    if agent_listens(settings.socket_path):
        document: Mapping[str, Any] = fetch_report(settings.socket_path, "map", {"since": str(since_unix_ns)})
    else:
        document = read_store(settings.state_dir, since_unix_ns)
    graph = graph_of(document).narrowed(host, edge_class)
    if host and not graph.edges and host not in graph_of(document).hosts():
        known = ", ".join(sorted(graph_of(document).hosts())) or "none"
        raise KernobError(f"--host {printable(host)}: not in this map; it has: {known}")
    text = tree(graph, colour=_is_colourful()) if kind == "tree" else FORMATS[kind](graph)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
    return 0


def tree(graph: Graph, *, colour: bool = False) -> str:
    """The map as text: under each who connects, whom it reaches, with what went over it."""
    if not graph.edges:
        return "Nothing was seen yet.\n"
    by_source: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        by_source.setdefault(edge.source, []).append(edge)
    titles = {name: node.title for name, node in graph.nodes.items()}
    shown = {edge.target: _cut(titles[edge.target]) for edge in graph.edges}
    width = max(len(f"{shown[edge.target]} {_port(edge, graph)}") for edge in graph.edges)
    lines = []
    for source in sorted(by_source, key=lambda name: (graph.nodes[name].kind == "service", titles[name])):
        lines.append(_paint(_cut(titles[source]), "1", colour))
        edges = sorted(by_source[source], key=lambda e: (-e.tx_bytes - e.rx_bytes, shown[e.target], e.port))
        for number, edge in enumerate(edges, 1):
            branch = "└─▶" if number == len(edges) else "├─▶"
            name = f"{shown[edge.target]} {_port(edge, graph)}".ljust(width)
            lines.append(f"{branch} {name}  {_figures(edge, colour)}")
    counts = f"{len(graph.nodes)} nodes, {len(graph.edges)} edges"
    return "\n".join([*lines, "", _paint(counts, "2", colour), ""])


def _figures(edge: Edge, colour: bool) -> str:
    kind = _paint(edge.edge_class.ljust(11), _COLOURS.get(edge.edge_class, "0"), colour)
    moved = f"{_size(edge.tx_bytes):>10} sent {_size(edge.rx_bytes):>10} received"
    failed = f", {edge.failures} failed" if edge.failures else ""
    said = f"{edge.connections:>7} connections" + _paint(failed, _BAD, colour)
    worst = f"  worst score {min(edge.scores.values()):.2f}" if edge.scores else ""
    return f"{kind} {moved} {said}{worst}".rstrip()


def _port(edge: Edge, graph: Graph) -> str:
    """The dialled port, where the node's title does not end in it."""
    return (
        "" if not edge.port or graph.nodes[edge.target].title.endswith(f":{edge.port}") else f":{edge.port}"
    )


def _size(count: int) -> str:
    amount, unit = float(count), 0
    while amount >= 1023.95 and unit < len(_SIZES) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{count} B" if not unit else f"{amount:.1f} {_SIZES[unit]}"


def _cut(title: str) -> str:
    return title if len(title) <= _TITLE_MOST else title[: _TITLE_MOST - 1] + "…"


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text else text


def _is_colourful() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
