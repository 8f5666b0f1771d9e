# SPDX-License-Identifier: Apache-2.0
"""The agent's clock is set back and forth while it counts: no byte is lost, none is counted twice.

A container has no clock of its own, and setting the machine's would disturb whoever shares it: so only the
agent's Python is told another time (clock/sitecustomize.py).
"""

from __future__ import annotations

import time
from pathlib import Path

from .compose import HERE, Stack, progress, wait_for
from .conftest import ROOMY
from .load import PROCESS_IO, SERVICE, Truth, assert_exact, host_workload, steady

BACK, OVER = True, False
BACK_S = 9
"""Of a step back: more than passes between two ticks on a busy machine, else no stamp would have to wait."""
SHIFTS = (
    (-BACK_S, BACK),
    (0, OVER),  # set forward again
    (5,),
    (5 - BACK_S, BACK, OVER),  # waited for
    (8,),
    (8 - BACK_S, BACK),
    (0, OVER),  # for the most part
)
"""Where the clock is set to, in seconds ahead of the machine's, and what the agent has to say of it."""


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


def clock_lines(stack: Stack) -> list[bool]:
    """What the agent said of its clock, in order: True for a step back, False for one that is over."""
    lines = [line for line in stack.logs("agent").splitlines() if " kernob.state.stamps: " in line]
    found = ["the clock was set back by " in line for line in lines]
    assert all(back or "the clock has caught up" in line for back, line in zip(found, lines, strict=True))
    return found


def wait_for_points(stack: Stack, ahead_s: int) -> None:
    """Wait until points of the load are stamped with a clock that is so far ahead."""

    def are_there() -> bool:
        stack.victoria.flush()
        rows = stack.victoria.export(f'{PROCESS_IO}{{kernob_service="{SERVICE}"}}')
        latest_ms = max((stamp_ms for _, samples in rows for stamp_ms, _ in samples), default=0)
        return latest_ms / 1000 > time.time() + ahead_s - 2

    wait_for(are_there, f"points {ahead_s} s ahead")


def test_the_agent_s_clock_is_set_back_and_forth(images: float, tmp_path: Path) -> None:
    """Steps both ways under load; each step back is one line, and one when it is over, however that comes."""
    del images
    clock = Clock(tmp_path)
    stack = Stack("kernob-ci-clock", ("tests/stack/fast.yaml", str(clock.overlay)), dict(ROOMY))
    stack.down(volumes=True)
    try:
        stack.up()
        since_s, truth = time.time() - 2 * BACK_S, Truth()  # the first points are stamped earlier than this
        expected: list[bool] = []
        with steady(10_000, 0.05) as sender:
            for seconds, *told in SHIFTS:
                progress(f"the agent's clock: {seconds:+d} s")
                clock.shift(seconds)
                truth.add(host_workload("many", 20, 1_000_000))
                if not told:
                    wait_for_points(stack, seconds)
                for word in told:
                    expected.append(word)
                    wait_for(lambda: len(clock_lines(stack)) >= len(expected), f"line {len(expected)}", 60)
                    truth.add(host_workload("many", 20, 1_000_000))
            truth.add(sender.stop())
        assert_exact(stack.victoria, truth, since_s)
        assert clock_lines(stack) == expected
    finally:
        stack.down(volumes=True)
