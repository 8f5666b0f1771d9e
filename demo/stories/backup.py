# SPDX-License-Identifier: Apache-2.0
"""A backup takes four fifths of the bandwidth at two in the morning.

A backup sends 20 MB/s over the interface that customers are served on. Kernob names its process, since when,
and its destination; the alert fires, and resolves when the backup ends. Without the fault the backup is
limited to 0.1 MB/s.
"""

from __future__ import annotations

from demo.business import STORAGE_NAME, STORAGE_PORT
from demo.scene import Scene, amount, clock
from demo.story import Story

SERVICE = "nightly_backup.py"
BYTES_PER_S, LIMITED_BYTES_PER_S = 20_000_000, 100_000
ALERT = "KernobInterfaceOwned"
SINCE_LIMIT_S = 30.0


def sent_per_s(scene: Scene, pid: int, rate: float) -> float | None:
    """What `kernob top` says that a process sends now, once that is near what it was told to."""
    rows = scene.document("top", "--once", "--by", "process", "--filter", SERVICE)["rows"]
    return next((row["tx_rate"] for row in rows if row["pid"] == pid and row["tx_rate"] >= rate / 2), None)


def run(scene: Scene) -> None:
    """See the module."""
    rate = BYTES_PER_S if scene.faulty else LIMITED_BYTES_PER_S
    backup = scene.program(SERVICE, STORAGE_NAME, STORAGE_PORT, rate, word="started")
    pid = str(backup.pid)
    scene.fault(f"cron starts {SERVICE} (PID {pid}), {amount(rate)}/s to {STORAGE_NAME}")
    scene.log(f"{backup.lines()[-1]}   (all it says)")

    who = {"process_pid": pid, "network_io_direction": "transmit"}
    alert = scene.expect(f"{ALERT} for PID {pid}", lambda: scene.firing(ALERT, **who), 90)[0]
    scene.says(f"{ALERT}: {alert.summary}")
    chosen = f'process_pid="{pid}",network_io_direction="transmit"'
    share = scene.expect(
        "a share of 80 %",
        lambda: scene.value(f"max(kernob:owner:share{{{chosen}}}) >= 0.8"), 30,
    )  # fmt: skip
    scene.must(share >= 0.8, f"its share of the interfaces' bytes: {share:.0%}")
    since_s = scene.expect(
        "since when", lambda: scene.value(f"min(kernob:owner:since_seconds{{{chosen}}})"), 30
    )
    scene.must(
        abs(since_s - scene.began_s) <= SINCE_LIMIT_S,
        f"owner since {clock(since_s)}, {abs(since_s - scene.began_s):.0f} s from its start",
    )
    moved = scene.expect("it in `kernob top`", lambda: sent_per_s(scene, backup.pid, rate), 30)
    scene.must(moved >= rate / 2, f"`kernob top`: PID {pid} sends {amount(moved)}/s")
    backup.end()
    scene.expect("the alert's end", lambda: not scene.firing(ALERT, **who), 120)
    scene.must(True, "the backup ended, the alert resolved")
    scene.see("kernob-bandwidth")


STORY = Story("backup", "A backup takes four fifths of the bandwidth", run)
