# SPDX-License-Identifier: Apache-2.0
"""A noisy neighbour saturates the disk, and a service beside it gets slow.

A ledger's Redis syncs each entry to a disk of 24 MB/s (services/slow_disk.py under a loop device), on which
an archiver writes as fast as it goes. The alert names the archiver; Kernob has the ledger's answer times
beside it. Without the fault the archiver writes 32 kB a second.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from compose.project import free_ports
from demo.business import SERVICES
from demo.owned import attempt, sh
from demo.scene import Alert, Scene
from demo.story import Story

ALERT = "KernobDiskSaturated"
DISK_BYTES, DISK_BYTES_PER_S = 100 << 20, 24_000_000
P95 = (
    "histogram_quantile(0.95, sum by (vmrange) (increase(kernob_tcp_response_duration_seconds_bucket"
    '{kernob_service="ledger.py",network_tcp_handshake_role="client"}[20s])))'
)


def slow_disk(scene: Scene) -> tuple[Path, str]:
    """A mounted file system on a slow disk of its own, and the disk's name."""
    owned, place = scene.business.owned, scene.business.place
    under, mounted = place / "disk", place / "volume"
    under.mkdir()
    mounted.mkdir()
    words = [sys.executable, str(SERVICES / "slow_disk.py"), str(under)]
    server = owned.start("slow-disk", [*words, str(DISK_BYTES), str(DISK_BYTES_PER_S)])
    owned.later(attempt, "umount", str(under))
    scene.needs("the slow disk", lambda: server.lines() and (under / "disk").exists(), 20)
    device = sh("losetup", "--find", "--show", str(under / "disk")).strip()
    owned.later(attempt, "losetup", "--detach", device)
    sh("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device, limit_s=120)
    sh("mount", device, str(mounted))
    owned.later(attempt, "umount", str(mounted))
    return mounted, device.removeprefix("/dev/")


def run(scene: Scene) -> None:
    """See the module."""
    business = scene.business
    volume, device = slow_disk(scene)
    (port,) = free_ports(1)
    redis = business.owned.start(
        "ledger-redis",
        ["redis-server", "--port", str(port), "--dir", str(volume), "--appendonly", "yes",
         "--appendfsync", "always", "--save", ""],
    )  # fmt: skip
    ledger = scene.program("ledger.py", port, word="kept")
    before_s = scene.needs("the ledger's answer times", lambda: scene.value(P95), 60)
    size, pause_s = (12_000_000, 0) if scene.faulty else (32_000, 1)
    archive = scene.program("archive.py", volume / "archive", size, pause_s, word="archiving")
    scene.fault(f"archive.py (PID {archive.pid}) writes to {device} as fast as it goes")

    scene.expect(f"{ALERT} for {device}", lambda: scene.firing(ALERT, device=device), 100)
    named = re.compile(rf"\(PID {archive.pid}[,)]")

    def naming() -> Alert | None:
        found = scene.firing(ALERT, device=device)
        return next((a for a in found if named.search(a.summary + a.description)), None)

    alert = scene.expect(f"its name in {ALERT}", naming, 60)
    scene.log(f"ledger.py: {ledger.lines()[-1]}   (all it says)")
    scene.says(f"{ALERT}: {alert.summary}")
    if not named.search(alert.summary):
        scene.says(next(iter(re.findall(r"Who uses disks.*? in \d+ \w+\)\.", alert.description)), ""))
    as_what = "the noisy neighbour" if named.search(alert.summary) else "one of the four that move most"
    scene.must(named.search(alert.summary + alert.description), f"it names PID {archive.pid} as {as_what}")
    slow_s = scene.expect(
        "slow answers to the ledger", lambda: (v := scene.value(P95)) and v > before_s + 0.02 and v, 30
    )
    scene.must(
        slow_s > before_s + 0.02,
        f"beside it: ledger.py waits {slow_s * 1e3:.0f} ms (p95) for its Redis (PID {redis.pid}), "
        f"{before_s * 1e3:.1f} ms before",
    )
    words = ("syscalls", "--pid", str(redis.pid), "--call", "fdatasync")
    row = scene.expect("it in `kernob syscalls`", lambda: scene.document(*words)["rows"], 30)[0]
    scene.must(
        row["max_s"] > 0.02,
        f"`kernob syscalls --pid {redis.pid}`: fdatasync took up to {row['max_s'] * 1e3:.0f} ms",
    )
    archive.end()
    scene.expect("the alert's end", lambda: not scene.firing(ALERT, device=device), 120)
    scene.must(True, "the archiver ended, the alert resolved")
    scene.see("kernob-host")


STORY = Story("disk", "A noisy neighbour saturates the disk", run)
