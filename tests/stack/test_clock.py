# SPDX-License-Identifier: Apache-2.0
"""The agent's clock is set back and forth while it counts: no byte is lost, none is counted twice.

A container has no clock of its own, and setting the machine's would disturb whoever shares it: so only the
agent's Python is told another time (clock/sitecustomize.py).
"""

from __future__ import annotations

import time
from pathlib import Path

from .compose import HERE, Stack, progress
from .load import Truth, assert_exact, host_workload, steady

SHIFTS_S = (-4, 0, 5, 0, -3, 2, 0)


class Clock:
    """What the agent takes for the time: the machine's, shifted by a whole number of seconds."""

    def __init__(self, directory: Path) -> None:
        """`directory` may hold what the agent reads."""
        self._offset = directory / "offset" / "seconds"
        self._offset.parent.mkdir()
        self.shift(0)
        self.overlay = directory / "clock.yaml"
        self.overlay.write_text(
            f"""\
services:
  agent:
    volumes: ["{HERE}/clock:/clock:ro", "{self._offset.parent}:/clock-offset:ro"]
    environment: {{PYTHONPATH: /clock}}
"""
        )

    def shift(self, seconds: int) -> None:
        """From now on the clock is so far ahead (negative: behind)."""
        following = self._offset.with_suffix(".new")
        following.write_text(str(seconds))
        following.replace(self._offset)


def test_the_agent_s_clock_is_set_back_and_forth(images: float, tmp_path: Path) -> None:
    """Steps of 2 to 5 s both ways, each under load; each step back is one line, and one when it is over."""
    del images
    clock = Clock(tmp_path)
    stack = Stack("kernob-ci-clock", ("tests/stack/fast.yaml", str(clock.overlay)))
    stack.down(volumes=True)
    try:
        stack.up()
        since_s, truth = time.time() - 10, Truth()  # the first points are stamped earlier than this
        with steady(10_000, 0.05) as sender:
            for seconds in SHIFTS_S:
                progress(f"the agent's clock: {seconds:+d} s")
                clock.shift(seconds)
                truth.add(host_workload("many", 20, 1_000_000))
                time.sleep(3.5)
                truth.add(host_workload("many", 20, 1_000_000))
                time.sleep(2.5)
            truth.add(sender.stop())
        assert_exact(stack.victoria, truth, since_s)
        lines = [line for line in stack.logs("agent").splitlines() if "the clock " in line]
        assert len(lines) == 2 * sum(b < a for a, b in zip((0, *SHIFTS_S), SHIFTS_S, strict=False)), lines
        assert ["set back" in line for line in lines] == [True, False] * (len(lines) // 2), lines
    finally:
        stack.down(volumes=True)
