# SPDX-License-Identifier: Apache-2.0
"""What the kernel side tells of resolvers: nothing mixed up, and nothing again and again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from names_net import network
from tcp_watch import act, watching

from kernob.kernel import uprobes
from kernob.kernel.libraries import Libraries
from kernob.kernel.ringbuf import RingBuffer
from kernob.probes import names
from kernob.state.hostname_text import name_id

SECONDS = 3
INTERRUPTED = 1
"""The processor where the resolver runs; what another one sends is received there, by interrupt (RPS)."""

FLOOD = f"""
import os, socket, time
os.sched_setaffinity(0, {{0}})
question = "00018180000100010000000004736f6d6504746573740000010001"
answer = bytes.fromhex(question + "c00c0001000100000e10000409090909")
inbox, port53 = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
inbox.bind(("127.0.0.1", 0))
port53.bind(("127.0.0.1", 53))
port53.connect(inbox.getsockname())
until = time.monotonic() + {SECONDS}
while time.monotonic() < until:
    for _ in range(100):
        port53.send(answer)
"""
SCRIPT = f"""
mount -t sysfs sysfs /sys && ip link set lo up &&
echo {1 << INTERRUPTED:x} > /sys/class/net/lo/queues/rx-0/rps_cpus && exec "$@"
"""


def resolve(host: str, seconds: float, cpu: int | None = None) -> None:
    """Asks for one name again and again."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(100):
            socket.getaddrinfo(host, 80, socket.AF_INET, socket.SOCK_STREAM)


@dataclass
class Told:
    """The ring of a session whose probes on getaddrinfo are attached."""

    ring: RingBuffer

    def take(self) -> list[names.Lookup]:
        """Records since the last call."""
        return [each for each in names.decode(self.ring.read(1 << 20)) if each]


@pytest.fixture(scope="module")
def told(agents: Path) -> Iterator[Told]:
    """One session for both tests."""
    with watching(agents / "cache", names="true") as watch:
        at_return, entry = (watch.session.program(p) for p in (names.RETURN, names.ENTRIES["getaddrinfo"]))
        if not at_return or not entry or not watch.session.strategy("names", "calls").startswith("uprobe_m"):
            pytest.skip("missing feature: uprobe_multi")
        libraries = Libraries(Path("/proc"), {"getaddrinfo": (entry, at_return)}, uprobes.probe_by_link)
        libraries.scan()
        lookups = watch.session.map("lookups")
        ring = RingBuffer(lookups.fd, lookups.max_entries)
        try:
            yield Told(ring)
        finally:
            ring.close()
            libraries.close()


def test_an_answer_that_interrupts_a_call_changes_nothing_of_it(told: Told) -> None:
    """A flood of answers from the wire, on the processor of a process that calls its library."""
    if (os.cpu_count() or 1) < 2 or not Path("/sys/class/net/lo/queues/rx-0/rps_cpus").exists():
        pytest.skip("missing feature: receive packet steering, two processors")
    caller = act(resolve, "localhost", SECONDS, INTERRUPTED)
    flood = ["unshare", "-n", "-m", "sh", "-ec", SCRIPT, "sh", sys.executable, "-c", FLOOD]
    subprocess.run(flood, check=True, timeout=60)
    caller.wait()
    records = told.take()
    own = [(each.kind, each.name, each.name_id, each.addresses) for each in records if each.pid == caller.pid]
    assert own == [(names.Kind.CALL, b"localhost", name_id(b"localhost"), ("127.0.0.1",))]
    # nobody had asked for those answers: whoever may send from port 53 names nothing here
    assert not [each for each in records if b"\4some\4test" in each.data]


def test_what_is_known_is_told_once_a_minute(told: Told, agents: Path) -> None:
    """However often a process asks, by its library and so on the wire, too."""
    with network(agents / "net-records", {"one.names.test": "10.77.0.1"}) as net:
        script = (
            "import socket\nfor _ in range(300): socket.getaddrinfo('one.names.test', 80, socket.AF_INET)"
        )
        caller = subprocess.Popen([*net.prefix, sys.executable, "-c", script])
        assert caller.wait(60) == 0
    counts = Counter(each.kind for each in told.take() if each.pid == caller.pid)
    assert counts[names.Kind.CALL] in (1, 2)  # 2, and as many of the wire: where a minute went by
    assert counts[names.Kind.WIRE] <= 2 * counts[names.Kind.CALL]
