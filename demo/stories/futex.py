# SPDX-License-Identifier: Apache-2.0
"""A worker is blocked on a futex for 180 ms, because another thread holds the lock.

Once a second a thread renews prices and holds their lock for 180 ms; the worker waits for it in futex(2).
Nothing is logged and no CPU is used. Kernob has the calls by process, as a histogram. Without the fault the
lock is held for 1 ms.
"""

from __future__ import annotations

from demo.scene import Scene
from demo.story import Story

SERVICE = "pricing.py"
HOLD_S, SHORT_S = 0.180, 0.001
LONG_S = 0.14
WINDOW_S = 15
LEAST = 8
_CALLS = (
    f'sum by (vmrange) (increase(kernob_syscall_duration_seconds_bucket{{kernob_service="{SERVICE}",'
    f'kernob_syscall="futex"}}[{WINDOW_S}s]))'
)
LONG_CALLS = f"sum({_CALLS}) * (1 - histogram_share({LONG_S}, {_CALLS}))"


def run(scene: Scene) -> None:
    """See the module."""
    hold_s = HOLD_S if scene.faulty else SHORT_S
    pricing = scene.program(SERVICE, hold_s, word="served")
    scene.fault(
        f"a thread of {SERVICE} (PID {pricing.pid}) holds its lock for {hold_s * 1e3:.0f} ms a second"
    )

    def enough() -> float | None:
        count = scene.value(LONG_CALLS)
        return count if count and count >= LEAST else None

    count = scene.expect(f"{LEAST} waits on a futex of {LONG_S * 1e3:.0f} ms or more", enough, 60)
    scene.log(f"{pricing.lines()[-1]}   (all it says)")
    worst_s = scene.expect("the longest call", lambda: scene.value(f"histogram_quantile(1, {_CALLS})"), 30)
    scene.says(f"futex, {SERVICE}: {count:.0f} calls in {WINDOW_S} s took up to {worst_s * 1e3:.0f} ms")
    scene.must(worst_s >= HOLD_S - 0.02, f"the longest is in the bucket that ends at {worst_s * 1e3:.0f} ms")
    waited = (
        f'kernob_process_syscall_time_seconds_total{{process_pid="{pricing.pid}",kernob_syscall="futex"}}'
    )

    def spent() -> float | None:
        now_s = scene.value(f"sum(increase({waited}[{WINDOW_S}s]))")
        return now_s if now_s and now_s > LEAST * LONG_S else None

    waited_s = scene.expect(f"{LEAST * LONG_S:.1f} s of it spent in futex", spent, 30)
    scene.must(
        waited_s > LEAST * LONG_S,
        f"PID {pricing.pid} spent {waited_s:.1f} s of the last {WINDOW_S} s in futex",
    )
    words = ("syscalls", "--pid", str(pricing.pid), "--call", "futex")
    row = scene.expect("it in `kernob syscalls`", lambda: scene.document(*words)["rows"], 30)[0]
    scene.must(
        row["max_s"] >= HOLD_S - 0.02,
        f"`kernob syscalls --pid {pricing.pid}`: {row['count']} calls of futex, "
        f"p50 {row['p50_s'] * 1e3:.0f} ms, the longest {row['max_s'] * 1e3:.0f} ms",
    )
    scene.see("kernob-time", service=SERVICE)


STORY = Story("futex", "A worker waits 180 ms for a lock", run)
