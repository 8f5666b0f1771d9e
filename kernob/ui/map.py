# SPDX-License-Identifier: Apache-2.0
"""`kernob map`: who talks to whom, as a tree in the terminal or for other programs.

The map comes from the running agent, or where none runs out of its store. Called by `commands.map`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.cells import cell_len

from kernob.config import Settings
from kernob.errors import KernobError
from kernob.ui.client import agent_listens, fetch_report
from kernob.ui.map_formats import FORMATS, Edge, Graph, graph_of
from kernob.ui.page import printed_as
from kernob.ui.tables import fit, human, score_text
from kernob.view import printable

ReadMap = Callable[[Path, int], Mapping[str, Any]]
"""The document of a state directory, of what was seen since a Unix time in ns."""

_COLOURS: Final = {
    "localhost": "2", "internal": "36", "external": "33", "self-hosted": "35", "unknown": "31",
}  # fmt: skip
_BAD: Final = "1;31"
_TITLE_MOST: Final = 48
_NAME_LEAST: Final = 24
_HEADS: Final = (("SENT", 7), ("RECEIVED", 8), ("CONNS", 7), ("FAILED", 6), ("SCORE", 5))
_CLASS_CELLS: Final = 11
_FIGURE_CELLS: Final = _CLASS_CELLS + sum(cells + 1 for _name, cells in _HEADS)
_WORST_CELLS: Final = 16
"""A blank and the longest dimension's name."""
_FAIR: Final = 0.9


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
    if kind == "tree":
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text = tree(graph, colour=_is_colourful(), width=columns)
    else:
        text = FORMATS[kind](graph)
    sys.stdout.write(printed_as(text))
    sys.stdout.flush()
    return 0


def tree(graph: Graph, *, colour: bool = False, width: int | None = None) -> str:
    """The map as text: under each who connects, whom it reaches, with what went over it.

    With a `width` in cells no line is longer, from 80 on; names are cut in their middle, figures never.
    """
    if not graph.edges:
        return "Nothing was seen in this time, or nothing that matches: --since 30d looks further back.\n"
    by_source: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        by_source.setdefault(edge.source, []).append(edge)
    titles = {name: node.title for name, node in graph.nodes.items()}
    cells = min(_TITLE_MOST, max(cell_len(_name(edge, graph)) for edge in graph.edges))
    wide = width is None or width >= _FIGURE_CELLS + _WORST_CELLS + cells + 5
    if width is not None:
        cells = min(cells, max(_NAME_LEAST, width - _FIGURE_CELLS - 5 - _WORST_CELLS * wide))
    heads = " ".join([f"{'CLASS':<{_CLASS_CELLS}}", *(f"{name:>{size}}" for name, size in _HEADS)])
    lines = [_paint(f"{' ' * (cells + 5)}{heads}{' WORST' * wide}", "2", colour)]
    for source in sorted(by_source, key=lambda name: (graph.nodes[name].kind == "service", titles[name])):
        lines.append(_paint(_cut(titles[source]), "1", colour))
        edges = sorted(by_source[source], key=lambda e: (-e.tx_bytes - e.rx_bytes, titles[e.target], e.port))
        for number, edge in enumerate(edges, 1):
            branch = "└─▶" if number == len(edges) else "├─▶"
            name = fit(_name(edge, graph), cells, middle=True)
            lines.append(f"{branch} {name} {_figures(edge, colour=colour, wide=wide)}")
    counts = f"{len(graph.nodes)} nodes, {len(graph.edges)} edges"
    return "\n".join([*lines, "", _paint(counts, "2", colour), ""])


def _figures(edge: Edge, *, colour: bool, wide: bool) -> str:
    """Class, bytes each way, connections, failures, the composite score, and what lowers it most."""
    score = edge.scores.get("composite")
    scored = "" if score is None else score_text(score)
    worst = ""
    if wide and score is not None and score < _FAIR:
        worst = min((value, name) for name, value in edge.scores.items() if name != "composite")[1]
    texts = (
        human(edge.tx_bytes, "B"), human(edge.rx_bytes, "B"), _count(edge.connections),
        _count(edge.failures) if edge.failures else "", scored,
    )  # fmt: skip
    sent, received, opened, failed, mark = (
        text.rjust(size) for text, (_name, size) in zip(texts, _HEADS, strict=True)
    )
    kind = _paint(edge.edge_class.ljust(_CLASS_CELLS), _COLOURS.get(edge.edge_class, "0"), colour)
    mark = _paint(mark, _BAD, colour and score is not None and score < _FAIR)
    cells = (kind, sent, received, opened, _paint(failed, _BAD, colour and bool(edge.failures)), mark)
    return " ".join([*cells, worst.replace("_", " ")]).rstrip()


def _count(count: int) -> str:
    return f"{count:,}" if count < 1_000_000 else human(count)


def _name(edge: Edge, graph: Graph) -> str:
    """The target's title, and the dialled port where that does not end in it."""
    title, port = graph.nodes[edge.target].title, f":{edge.port}"
    return title if not edge.port or title.endswith(port) else f"{title} {port}"


def _cut(title: str) -> str:
    return title if len(title) <= _TITLE_MOST else title[: _TITLE_MOST - 1] + "…"


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text else text


def _is_colourful() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
