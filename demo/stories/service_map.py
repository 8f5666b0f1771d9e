# SPDX-License-Identifier: Apache-2.0
"""The map that Kernob discovers is the business as it was declared, edge for edge.

Declared is here what talks to what, with a program that is new today. Host processes, containers, a network
namespace and names are on it; each connection that both ends of were seen is one edge. Without the fault
(the new program) the declared edge of it is not there.
"""

from __future__ import annotations

import socket

from demo.business import FULFILMENT, PAYMENTS_PORT, REDIS, Business
from demo.scene import Scene
from demo.story import Story

NEW = "analytics.py"
OURS = {"customers.py", "shop.py", "payments.py", NEW, REDIS, FULFILMENT}
"""Services that nobody but the demo has: every edge of theirs counts."""
VISITORS = {"reports.py", "courier.py", "ledger.py", "nightly_backup.py"}
"""Programs of other stories."""

Edge = tuple[str, str, str]
"""Who connects, who answers, port."""


def declared(business: Business) -> set[Edge]:
    """What the business is made to do, and the new program."""
    ports = {name: str(port) for name, port in business.ports.items()}
    return {
        ("customers.py", "nginx", ports["nginx"]),
        ("nginx", "shop.py", ports["shop"]),
        ("shop.py", REDIS, "6379"),
        ("shop.py", "postgres", ports["postgres"]),
        ("shop.py", "beam.smp", ports["rabbit"]),
        ("shop.py", "payments.py", str(PAYMENTS_PORT)),
        (FULFILMENT, "beam.smp", ports["rabbit"]),
        (FULFILMENT, "postgres", ports["postgres"]),
        ("beam.smp", "epmd", ports["epmd"]),
        (NEW, "postgres", ports["postgres"]),
    }


def discovered(scene: Scene) -> set[Edge]:
    """Edges of the map that lead to the business's ports, or begin at a service of its own."""
    ports = {port for _, _, port in declared(scene.business)}
    host = f"{socket.gethostname()}/"
    found = set()
    for sample in scene.query("last_over_time(kernob_map_edge[15m])"):
        source, target = (sample.labels[end].removeprefix(host) for end in ("source", "target"))
        port = sample.labels.get("server_port", "")
        if (port in ports or source in OURS) and source not in VISITORS:
            found.add((source, target, port))
    return found


def difference(told: set[Edge], found: set[Edge]) -> str:
    """What one has and the other has not; empty where there is nothing.

    >>> difference({("a", "b", "1")}, {("a", "c", "1")})
    'missing a -> b:1; undeclared a -> c:1'
    """
    parts = [f"missing {s} -> {t}:{p}" for s, t, p in sorted(told - found)]
    parts += [f"undeclared {s} -> {t}:{p}" for s, t, p in sorted(found - told)]
    return "; ".join(parts)


def run(scene: Scene) -> None:
    """See the module."""
    told = declared(scene.business)
    if scene.faulty:
        scene.program(NEW, scene.business.ports["postgres"], word="run")
        scene.fault(f"{NEW} is new today and reads the orders")
    last = ["nothing"]

    def equal() -> bool:
        last[0] = difference(told, discovered(scene))
        return not last[0]

    try:
        scene.expect(f"{len(told)} edges as declared", equal, 60)
    finally:
        if last[0]:
            scene.says(f"differs: {last[0]}")
    for source, target, port in sorted(told):
        scene.says(f"{source} -> {target}:{port}")
    scene.must(True, f"the map has these {len(told)} edges of the business, and no other")
    health = 'kernob_map_edge_score_ratio{kernob_score_dimension="composite",id=~".*payments.*"}'
    found = scene.expect("a score on the edge to the payments", lambda: scene.query(health), 60)
    scene.must(
        0 <= found[0].value <= 1, f"the edge to the payment service has its score: {found[0].value:.2f}"
    )
    scene.see("kernob-map")


STORY = Story("map", "The map is the business as declared, edge for edge", run)
