# SPDX-License-Identifier: Apache-2.0
"""A packet comes in while a resolver's return is being looked at: neither gets the other's name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
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


def resolve() -> None:
    """Asks for one name again and again."""
    os.sched_setaffinity(0, {INTERRUPTED})
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        for _ in range(100):
            socket.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM)


def test_an_answer_that_interrupts_a_call_changes_nothing_of_it(agents: Path) -> None:
    """A flood of answers from the wire, on the processor of a process that calls its library."""
    if (os.cpu_count() or 1) < 2 or not Path("/sys/class/net/lo/queues/rx-0/rps_cpus").exists():
        pytest.skip("missing feature: receive packet steering, two processors")
    with watching(agents / "cache", names="true") as watch:
        at_return, entry = (watch.session.program(p) for p in (names.RETURN, names.ENTRIES["getaddrinfo"]))
        if not at_return or not entry or not watch.session.strategy("names", "calls").startswith("uprobe_m"):
            pytest.skip("missing feature: uprobe_multi")
        libraries = Libraries(Path("/proc"), {"getaddrinfo": (entry, at_return)}, uprobes.probe_by_link)
        libraries.scan()
        lookups = watch.session.map("lookups")
        ring = RingBuffer(lookups.fd, lookups.max_entries)
        try:
            caller = act(resolve)
            flood = ["unshare", "-n", "-m", "sh", "-ec", SCRIPT, "sh", sys.executable, "-c", FLOOD]
            subprocess.run(flood, check=True, timeout=60)
            caller.wait()
            told = [each for each in names.decode(ring.read(1 << 20)) if each and each.pid == caller.pid]
        finally:
            ring.close()
            libraries.close()
    kinds = [(each.kind, each.name, each.name_id, each.addresses) for each in told]
    assert kinds == [(names.Kind.CALL, b"localhost", name_id(b"localhost"), ("127.0.0.1",))]
