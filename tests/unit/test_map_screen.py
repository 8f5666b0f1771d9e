# SPDX-License-Identifier: Apache-2.0
"""`kernob map` and `kernob destinations` where no agent runs: out of a store, in every format."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernob import cli
from kernob.derive.topology import Dial, Reached, folded, incoming, outgoing
from kernob.model import PeerClass
from kernob.state.baseline import Baseline
from kernob.state.map_history import write_destinations, write_map
from kernob.state.series import SeriesStore
from kernob.state.service_map import MapState
from kernob.state.store import FILE_NAME, migrate
from kernob.ui.map import tree
from kernob.ui.map_formats import Edge, Graph, Node, graph_of

DAY_NS = 86_400 * 10**9
HOSTILE = '</script><script>alert(1)</script>"]\x1b[31m'


@dataclass(frozen=True)
class Result:
    """What a command did."""

    exit_code: int
    output: str


@pytest.fixture
def kernob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    now_ns = time.time_ns()
    state, baseline = MapState(1000, folded), Baseline(SeriesStore(), 86_400, 10)
    local, external = PeerClass.LOCALHOST, PeerClass.EXTERNAL
    redis = outgoing("vm", "app", Dial(1, "127.0.0.1", 6379), local, Reached("redis", 1, 6379), here=True)
    old = outgoing("vm", "app", Dial(1, "192.0.2.1", 443, "old.example"), external, None, here=False)
    odd = outgoing("vm", HOSTILE, Dial(1, "192.0.2.2", 443), external, None, here=False)
    clients = incoming("vm", "app", 80, external)
    for link, age_ns in ((redis, 0), (old, 20 * DAY_NS), (odd, 0), (clients, 0)):
        edge = state.edge(link, now_ns - age_ns)
        state.add(np.array([edge]), np.array([[2048, 100, 3, 1 if link is odd else 0]]), now_ns - age_ns)
        baseline.see(link, now_ns - 2 * DAY_NS, now_ns - age_ns)
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as connection:
        migrate(connection)
        write_map(connection, *state.rows())
        write_destinations(connection, *baseline.changes())

    monkeypatch.setenv("KERNOB_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("KERNOB_SOCKET", str(tmp_path / "none.sock"))

    def run(*arguments: str) -> Result:
        return Result(cli.main(arguments), capsys.readouterr().out)

    return run


def test_the_tree_has_every_edge_of_the_last_day(kernob: Callable[..., Result]) -> None:
    """By who connects; with figures; nothing that a terminal would obey."""
    done = kernob("map")
    assert done.exit_code == 0, done.output
    assert re.search(r"^app:80\n└─▶ redis:6379 +localhost +2\.05 kB +100 B +3$", done.output, re.MULTILINE), (
        done.output
    )
    assert re.search(r"^external clients\n└─▶ app:80 ", done.output, re.MULTILINE)
    assert "old.example" not in done.output
    assert re.search(r"external +2\.05 kB +100 B +3 +1$", done.output, re.MULTILINE)
    assert re.search(r"^ +CLASS +SENT +RECEIVED +CONNS +FAILED +SCORE WORST$", done.output, re.MULTILINE)
    assert "\x1b" not in done.output
    assert "5 nodes, 3 edges" in done.output


def test_a_tree_fits_its_terminal_and_cuts_only_names() -> None:
    """From 80 columns on; figures stand whole, a name keeps its port; the score is the composite one."""
    long = "payments-and-more-payments.internal.shop.example.com"
    graph = Graph(
        {"vm/a": Node("vm/a", "service", "a", "localhost"), "dns/b": Node("dns/b", "name", long, "external")},
        (Edge(
            "vm/a", "dns/b", 443, "self-hosted", "192.0.2.1", 10**12, 5, 1_234_567, 89_012, 0, 0,
            {"reliability": 0.9, "packet_health": 0.2, "composite": 0.41},
        ),),
    )  # fmt: skip
    for width in (80, 120):
        lines = tree(graph, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert re.fullmatch(
            r"└─▶ payments\S*…\S*m :443 +self-hosted 1.00 TB +5 B +1.23M 89,012 +0.41.*", lines[2]
        )
    assert lines[2].endswith(" 0.41 packet health")
    assert lines[0].endswith(" SCORE WORST")


def test_since_class_and_host(kernob: Callable[..., Result]) -> None:
    """Each narrows the map; a host that is not in it is an error that says which are."""
    assert "old.example" in kernob("map", "--since", "30d").output
    assert "1 edges" in kernob("map", "--class", "localhost").output
    assert "3 edges" in kernob("map", "--host", "vm").output
    for other in ("nope", "dns", "ip", "clients"):  # what other nodes' ids begin with is no host
        refused = kernob("map", "--host", other)
        assert (refused.exit_code, refused.output) == (1, ""), other


def test_json_dot_and_mermaid(kernob: Callable[..., Result]) -> None:
    """Every edge, its ends among the nodes, hostile names quoted."""
    document: dict[str, Any] = json.loads(kernob("map", "--format", "json").output)
    assert {e["source"] for e in document["edges"]} <= {n["id"] for n in document["nodes"]}
    assert len(document["edges"]) == 3
    dot = kernob("map", "--format", "dot").output
    assert '"vm/app" -> "vm/redis" [label="6379"];' in dot
    assert dot.count("{") == dot.count("}") == 1
    assert all(line.count('"') % 2 == 0 for line in dot.replace('\\"', "").splitlines())
    mermaid = kernob("map", "--format", "mermaid").output
    assert '-->|"6379"|' in mermaid
    assert "alert(1)" in mermaid
    assert '"]["' not in mermaid


def test_graphviz_reads_every_edge(kernob: Callable[..., Result]) -> None:
    """Also where names are hostile: the nodes and edges that `dot` lays out are those of the map."""
    dot = shutil.which("dot")
    if dot is None:
        pytest.skip("missing feature: graphviz")
    text = kernob("map", "--format", "dot").output
    done = subprocess.run([dot, "-Tplain"], input=text, capture_output=True, text=True, check=True)
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert (kinds.count("node"), kinds.count("edge")) == (5, 3)


def test_the_page_needs_nothing_and_runs_nobody_elses_script(kernob: Callable[..., Result]) -> None:
    """No address is loaded; data cannot end the script; the scripts are well-formed."""
    page = kernob("map", "--format", "html").output
    assert page.count("<script>") == page.count("</script>") == 2
    assert not re.search(r'(src|href)="', page)
    assert "default-src 'none'" in page
    assert "\\u003c/script>" in page
    assert len(page) < 500_000
    node = shutil.which("node")
    if node is None:
        pytest.skip("missing feature: node")
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    subprocess.run([node, "--check", "-"], input=script, text=True, check=True)


def test_no_document_is_refused() -> None:
    """What is no map is said to be none."""
    with pytest.raises(ValueError, match="no service map"):
        graph_of({"nodes": [{}], "edges": []})


def test_the_baseline_is_listed_and_changed(kernob: Callable[..., Result]) -> None:
    """list, accept and forget work on what matches; a change that names nothing is refused."""
    assert "192.0.2.1" not in kernob("destinations", "list", "app", "redis").output
    listed = json.loads(kernob("destinations", "--json").output)["destinations"]
    states = {(row["target"], row["state"]) for row in listed}
    assert ("vm/redis", "new") in states
    assert ("dns/old.example", "learned") in states
    accepted = kernob("destinations", "accept", "app", "old.*", "--port", "443")
    assert (accepted.exit_code, accepted.output) == (0, "1 accepted\n")
    assert kernob("destinations", "accept", "app", "old.*").output == "0 accepted\n"
    assert kernob("destinations", "forget", "app", "old.example").output == "1 forgotten\n"
    assert kernob("destinations", "forget", "app", "old.example").exit_code == 1
    assert kernob("destinations", "accept").exit_code == 2
    # in a pattern only * and ? are special: this is a name, as it is shown
    hostile = kernob("destinations", "accept", HOSTILE, "192.0.2.2")
    assert (hostile.exit_code, hostile.output) == (0, "1 accepted\n")
