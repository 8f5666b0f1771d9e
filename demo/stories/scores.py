# SPDX-License-Identifier: Apache-2.0
"""What the stories of the dependency claim of its score: the right dimension falls, and recovers.

The composite follows: it lies below what the other dimensions alone would make of it. The score is the
hostname's, whatever address a connection went to (docs/scores.md). The demo's window is half a minute, its
half-life five seconds (demo/stack.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from demo.business import PAYMENTS_NAME, PAYMENTS_PORT
from demo.scene import Scene

SERVICE = "shop.py"
WEIGHTS = {
    "reliability": 0.35, "latency": 0.15, "stability": 0.20, "packet_health": 0.10, "responsiveness": 0.20,
}  # fmt: skip
PULL = 0.03
FALL_LIMIT_S, RECOVERY_LIMIT_S = 60.0, 90.0


def without(scores: Mapping[str, float], dimension: str) -> float:
    """What the composite would be without one dimension, 0.01 to 1.

    >>> round(without({"reliability": 0.9, "stability": 1.0, "latency": 0.0}, "latency"), 3)
    0.935
    """
    others = {name: weight for name, weight in WEIGHTS.items() if name in scores and name != dimension}
    total = sum(others.values())
    logs = sum(weight * math.log(max(scores[name], 0.01)) for name, weight in others.items())
    return math.exp(logs / total)


def scores(scene: Scene) -> dict[str, float]:
    """The scores of the payment service as the shop sees it, by dimension; those that there are."""
    chosen = f'kernob_service="{SERVICE}",server_address="{PAYMENTS_NAME}",server_port="{PAYMENTS_PORT}"'
    found = scene.query(f"kernob_dependency_score_ratio{{{chosen}}}")
    return {sample.labels["kernob_score_dimension"]: sample.value for sample in found}


def well(scene: Scene, dimension: str, least: float = 0.9) -> None:
    """Before anything is done to it: the dimension has a good score."""

    def good() -> bool:
        return scores(scene).get(dimension, 0.0) >= least

    scene.needs(f"{dimension} of {least} or more", good, 90)


def falls(scene: Scene, dimension: str, below: float) -> None:
    """The dimension falls below, and takes the composite with it."""

    def low() -> dict[str, float] | None:
        now = scores(scene)
        if now.get(dimension, 1.0) >= below or "composite" not in now:
            return None
        return now if now["composite"] < without(now, dimension) - PULL else None

    now = scene.expect(f"{dimension} below {below}, and a composite that follows", low, FALL_LIMIT_S)
    scene.must(
        True,
        f"score of {PAYMENTS_NAME}: {dimension} {now[dimension]:.2f}, composite {now['composite']:.2f}, "
        f"which would be {without(now, dimension):.2f} without it",
    )
    told = scene.expect("the same in `kernob score`", lambda: explained(scene, dimension, below), 30)
    scene.must(True, f"`kernob score {PAYMENTS_NAME}`: {dimension} {told:.2f}")


def explained(scene: Scene, dimension: str, below: float) -> float | None:
    """The dimension's score as `kernob score` has it, once that is below."""
    places = scene.document("score", f"{PAYMENTS_NAME}:{PAYMENTS_PORT}")["dependencies"]
    found = [place["score"].get(dimension, 1.0) for place in places if place["service"] == SERVICE]
    return found[0] if found and found[0] < below else None


def recovers(scene: Scene, dimension: str, least: float = 0.9) -> None:
    """It is well again, and the composite no lower than the others make it."""

    def back() -> dict[str, float] | None:
        now = scores(scene)
        if now.get(dimension, 0.0) < least or "composite" not in now:
            return None
        return now if now["composite"] > without(now, dimension) - 2 * PULL else None

    now = scene.expect(f"{dimension} to recover", back, RECOVERY_LIMIT_S)
    scene.must(True, f"recovered: {dimension} {now[dimension]:.2f}, composite {now['composite']:.2f}")
