# SPDX-License-Identifier: Apache-2.0
"""What the stories of the dependency claim of its score: the right dimension falls, and recovers.

The composite follows it both ways. The score is the hostname's, whatever address a connection went to
(docs/scores.md). The demo's window is half a minute, its half-life five seconds (demo/stack.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from demo.business import PAYMENTS_NAME, PAYMENTS_PORT
from demo.scene import Scene

SERVICE = "shop.py"
WELL = 0.9
LOWER_BY = 0.05
FALL_LIMIT_S, RECOVERY_LIMIT_S = 60.0, 90.0


@dataclass(frozen=True)
class Scores:
    """Of the payment service as the shop sees it: one dimension, and the composite."""

    dimension: float
    composite: float


def scores(scene: Scene, dimension: str) -> Scores | None:
    """The scores now; None where there is none yet."""
    found = {
        sample.labels["kernob_score_dimension"]: sample.value
        for sample in scene.query(
            f'kernob_dependency_score_ratio{{kernob_service="{SERVICE}",server_address="{PAYMENTS_NAME}",'
            f'server_port="{PAYMENTS_PORT}"}}'
        )
    }
    if dimension not in found or "composite" not in found:
        return None
    return Scores(found[dimension], found["composite"])


def well(scene: Scene, dimension: str) -> Scores:
    """Before anything is done to it: the dimension is near 1."""

    def good() -> Scores | None:
        now = scores(scene, dimension)
        return now if now and now.dimension >= WELL else None

    return scene.expect(f"a good score of {dimension}", good, 90)


def falls(scene: Scene, dimension: str, before: Scores, below: float) -> Scores:
    """The dimension falls below, and takes the composite with it."""

    def low() -> Scores | None:
        now = scores(scene, dimension)
        fell = now and now.dimension < below and now.composite < before.composite - LOWER_BY
        return now if fell else None

    now = scene.expect(f"{dimension} below {below}, and a composite that follows", low, FALL_LIMIT_S)
    scene.must(
        True,
        f"score of {PAYMENTS_NAME}: {dimension} {before.dimension:.2f} before, {now.dimension:.2f} now; "
        f"composite {before.composite:.2f}, {now.composite:.2f}",
    )
    return now


def recovers(scene: Scene, dimension: str, before: Scores, low: Scores) -> None:
    """Both are well again; the composite most of the way: a busy machine costs it something, too."""
    enough = low.composite + 0.7 * (before.composite - low.composite)

    def both() -> Scores | None:
        now = scores(scene, dimension)
        return now if now and now.dimension >= WELL and now.composite >= enough else None

    now = scene.expect(f"{dimension} and composite to recover", both, RECOVERY_LIMIT_S)
    scene.must(True, f"recovered: {dimension} {now.dimension:.2f}, composite {now.composite:.2f}")
