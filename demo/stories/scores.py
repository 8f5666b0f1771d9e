# SPDX-License-Identifier: Apache-2.0
"""What the stories of the dependency claim of its score: the right dimension falls, and recovers.

The score is the hostname's, whatever address a connection went to (docs/scores.md). The demo's window is half
a minute, its half-life five seconds (demo/stack.py).
"""

from __future__ import annotations

from demo.business import PAYMENTS_NAME, PAYMENTS_PORT
from demo.scene import Scene

SERVICE = "shop.py"
WELL, FOLLOWS = 0.9, 0.93
FALL_LIMIT_S, RECOVERY_LIMIT_S = 60.0, 90.0


def score(scene: Scene, dimension: str) -> float | None:
    """The score of the payment service as the shop sees it; None without one."""
    return scene.value(
        f'min(kernob_dependency_score_ratio{{kernob_service="{SERVICE}",server_address="{PAYMENTS_NAME}",'
        f'server_port="{PAYMENTS_PORT}",kernob_score_dimension="{dimension}"}})'
    )


def _both(scene: Scene, dimension: str) -> tuple[float, float] | None:
    values = score(scene, dimension) or 0.0, score(scene, "composite") or 0.0
    return values if values[0] >= WELL and values[1] >= FOLLOWS else None


def is_well(scene: Scene, dimension: str) -> None:
    """Before anything is done to it: a score near 1."""
    scene.expect(f"a good score of {dimension}", lambda: _both(scene, dimension), 90)


def falls(scene: Scene, dimension: str, below: float) -> None:
    """The dimension falls below, and the composite falls with it."""

    def low() -> float | None:
        value = score(scene, dimension)
        return max(value, 1e-9) if value is not None and value < below else None

    value = scene.expect(f"{dimension} below {below}", low, FALL_LIMIT_S)
    together = scene.expect(
        "a composite that follows",
        lambda: (v := score(scene, "composite")) and v < FOLLOWS and v,
        FALL_LIMIT_S,
    )
    scene.must(True, f"score of {PAYMENTS_NAME}: {dimension} {value:.2f}, composite {together:.2f}")


def recovers(scene: Scene, dimension: str) -> None:
    """Both are well again."""
    found = scene.expect(
        f"{dimension} and composite to recover", lambda: _both(scene, dimension), RECOVERY_LIMIT_S
    )
    scene.must(True, f"recovered: {dimension} {found[0]:.2f}, composite {found[1]:.2f}")
