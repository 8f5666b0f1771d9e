# SPDX-License-Identifier: Apache-2.0
"""The map that Kernob discovers is the business as it was declared, edge for edge.

Declared is here what talks to what, with a program that is new today. Host processes, containers, a network
namespace and names are on it; each connection that both ends of were seen is one edge. Without the fault
(the new program) the declared edge of it is not there.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable

from demo.business import FULFILMENT, PAYMENTS_PORT, REDIS, Business
from demo.owned import BrokenError
from demo.scene import Scene
from demo.story import MissingError, Story

NEW = "analytics.py"
OURS = {"customers.py", "shop.py", "payments.py", NEW, REDIS, FULFILMENT}
"""Services that nobody but the demo has: every edge of theirs counts."""
VISITORS = {"reports.py", "courier.py", "ledger.py", "nightly_backup.py"}
"""Programs of other stories."""

UNASKED = {("shop.py", "beam.smp"), ("beam.smp", "epmd")}
"""Who connects once, and then only sends: there is nothing that a score could rest on."""

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


def is_ours(edge: Edge, ports: set[str]) -> bool:
    """Whether an edge touches the business: a service of its own, or one of its own `ports`."""
    source, target, port = edge
    return source not in VISITORS and (source in OURS or target in OURS or port in ports)


def on_the_map(scene: Scene) -> set[Edge]:
    """The business's edges of the map, as they are in VictoriaMetrics; 0 is one that was withdrawn."""
    found = {
        (sample.labels["source"], sample.labels["target"], sample.labels.get("server_port", ""))
        for sample in scene.query("last_over_time(kernob_map_edge[15m]) > 0")
    }
    return ours(scene, found)


def in_the_terminal(scene: Scene) -> set[Edge]:
    """The same edges as `kernob map` has them."""
    document = json.loads(scene.kernob("map", "--format", "json"))
    return ours(scene, {(e["source"], e["target"], str(e["port"])) for e in document["edges"]})


def ours(scene: Scene, found: Iterable[Edge]) -> set[Edge]:
    """Those of the business, without the host's name."""
    host, ports = f"{socket.gethostname()}/", {str(port) for port in scene.business.ports.values()}
    short = {(source.removeprefix(host), target.removeprefix(host), port) for source, target, port in found}
    return {edge for edge in short if is_ours(edge, ports)}


def difference(told: set[Edge], found: set[Edge]) -> str:
    """What one has and the other has not; empty where there is nothing.

    >>> difference({("a", "b", "1")}, {("a", "c", "1")})
    'missing a -> b:1; undeclared a -> c:1'
    """
    parts = [f"missing {s} -> {t}:{p}" for s, t, p in sorted(told - found)]
    parts += [f"undeclared {s} -> {t}:{p}" for s, t, p in sorted(found - told)]
    return "; ".join(parts)


def equal(scene: Scene, told: set[Edge], discovered: Callable[[Scene], set[Edge]], where: str) -> None:
    """Claim that both are the same; MissingError says how they differ if they never are.

    All but the new program's edge has to be so with and without the fault.
    """
    new = {edge for edge in told if edge[0] == NEW}
    last = ""

    def same(but: set[Edge]) -> bool:
        nonlocal last
        last = difference(told - but, discovered(scene) - but)
        return not last

    what = f"the business as declared in {where}"
    try:
        scene.needs(what, lambda: same(new), 30)
        scene.expect(what, lambda: same(set()), 45)
    except (BrokenError, MissingError) as error:
        raise type(error)(f"{error}: {last}") from None
    scene.must(True, f"{where} has the {len(told)} edges of the business as declared, and no other")


def scored(scene: Scene, edges: set[Edge]) -> dict[Edge, float] | None:
    """The composite score of each of these edges, once all of them have one."""
    host = socket.gethostname()
    by_id = {
        f"{host}/{source}|{host}/{target}|{port}": (source, target, port) for source, target, port in edges
    }
    samples = scene.query(
        'last_over_time(kernob_map_edge_score_ratio{kernob_score_dimension="composite"}[1m])'
    )
    found = {by_id[s.labels["id"]]: s.value for s in samples if s.labels["id"] in by_id}
    return found if len(found) == len(edges) else None


def run(scene: Scene) -> None:
    """See the module."""
    told = declared(scene.business)
    if scene.faulty:
        scene.program(NEW, scene.business.ports["postgres"], word="run")
        scene.fault(f"{NEW} is new today and reads the orders")
    for where, discovered in (("VictoriaMetrics", on_the_map), ("`kernob map`", in_the_terminal)):
        equal(scene, told, discovered, where)
    for source, target, port in sorted(told):
        scene.says(f"{source} -> {target}:{port}")
    asking = {edge for edge in told if edge[:2] not in UNASKED}
    found = scene.expect(f"scores on the {len(asking)} edges that ask", lambda: scored(scene, asking), 60)
    worst = min(found, key=lambda edge: found[edge])
    scene.must(
        all(0 < score <= 1 for score in found.values()),
        f"the {len(found)} edges on which something is asked have scores, the worst is "
        f"{found[worst]:.2f} ({worst[0]} -> {worst[1]})",
    )
    scene.see("kernob-map")


STORY = Story("map", "The map is the business as declared, edge for edge", run)
