# SPDX-License-Identifier: Apache-2.0
"""What a fleet costs its database: many simulated agents feed one real VictoriaMetrics.

    .venv/bin/python -m benchmarks.fleet VICTORIA_METRICS [--hosts 100] [--seconds 600]

VICTORIA_METRICS is the program (Debian: victoria-metrics). Each host has the product's own series store and
encoder: services with destinations (bytes, outcomes, active connections, three histograms, scores) and
processes (bytes). In each interval some destinations are busy, the rest is sent again once a minute, as
agents do. Printed is what docs/operations.md has: series, samples, CPU, memory, bytes on disk, bytes a day.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compose.project import free_ports
from compose.victoria import Victoria
from kernob.export.encode import RequestEncoder
from kernob.model import Attributes, MetricSpec
from kernob.probes import tcp, traffic
from kernob.state.blocks import Slots
from kernob.state.buckets import BUCKETS
from kernob.state.score_series import SCORE
from kernob.state.series import SeriesStore

SERVICES, DESTINATIONS, PROCESSES = 10, 4, 50
INTERVAL_S, BUSY = 10.0, 0.3
SPREAD = 12
"""Buckets that the durations of one destination fall into."""
DIMENSIONS = ("reliability", "latency", "stability", "packet_health", "responsiveness", "composite")
DIRECTIONS = ("receive", "transmit")
HISTOGRAMS = (tcp.CONNECT_DURATION, tcp.RESPONSE_DURATION, tcp.RTT)
OPTIONS = (
    "-opentelemetry.usePrometheusNaming",
    "-opentelemetry.promoteScopeMetadata=false",
    "-loggerLevel=WARN",
)


@dataclass
class Host:
    """One simulated agent: its store, where its series are, and what encodes them."""

    number: int
    rng: np.random.Generator
    store: SeriesStore = field(default_factory=SeriesStore)
    points: int = 0

    def __post_init__(self) -> None:
        """Admit all series; nothing has a value yet."""
        name = f"vm{self.number:03}"
        self.encoder = RequestEncoder(
            (("host.name", name), ("service.name", "kernob"), ("service.instance.id", name))
        )
        self.start_ns = time.time_ns()
        flows = [
            (
                ("kernob.service", f"service-{s}"),
                ("server.address", f"{name}-s{s}-d{d}.example"),
                ("server.port", 443),
            )
            for s in range(SERVICES)
            for d in range(DESTINATIONS)
        ]
        ends = [
            (*flow, ("kernob.peer.class", "external"), ("network.tcp.handshake.role", "client"))
            for flow in flows
        ]
        moved = ("network.transport", "tcp")
        clients = [(*flow, end[4]) for flow, end in zip(flows, ends, strict=True)]
        admitted: dict[MetricSpec, Sequence[Attributes]] = {
            traffic.FLOW_IO: [(*e, ("network.io.direction", w), moved) for e in ends for w in DIRECTIONS],
            tcp.CONNECTIONS: [(*client, ("error.type", "")) for client in clients],
            tcp.ACTIVE: clients,
            SCORE: [(*f, ("kernob.score.dimension", d)) for f in flows for d in DIMENSIONS],
            traffic.PROCESS_IO: [
                (*p, ("network.io.direction", w), moved) for p in processes() for w in DIRECTIONS
            ],
        }
        self.slots = {spec.name: self._admit(spec, found) for spec, found in admitted.items()}
        self.values = {name: np.zeros(len(slots)) for name, slots in self.slots.items()}
        self.histograms = [
            (block, np.array([block.admit(each, self.start_ns) for each in ends]))
            for block in map(self.store.histogram, HISTOGRAMS)
        ]
        self.first_bucket = self.rng.integers(20, 60, len(flows))

    def _admit(self, spec: MetricSpec, found: Iterable[Attributes]) -> Slots:
        block = self.store.block(spec)
        return np.array([block.admit(attributes, self.start_ns) for attributes in found])

    def live(self) -> None:
        """One interval: some destinations are busy, and everything of theirs moves."""
        flows = SERVICES * DESTINATIONS
        busy = self.rng.random(flows) < BUSY
        for spec in (traffic.FLOW_IO, tcp.CONNECTIONS, tcp.ACTIVE, SCORE, traffic.PROCESS_IO):
            values = self.values[spec.name]
            per = max(1, len(values) // flows)
            moves = np.resize(np.repeat(busy, per), len(values))
            if spec is SCORE:
                values[moves] = self.rng.random(int(moves.sum()))
            else:
                values[moves] += self.rng.integers(1, 10_000, int(moves.sum()))
            self.store.block(spec).set(self.slots[spec.name], values)
        rows = np.zeros((flows, BUCKETS), dtype=np.int64)
        for flow in np.flatnonzero(busy):
            np.add.at(rows[flow], self.first_bucket[flow] + self.rng.integers(0, SPREAD, 20), 1)
        for block, slots in self.histograms:
            block.add(slots[busy], rows[busy].sum(axis=1) * 1_000_000, rows[busy])

    def send(self, url: str) -> None:
        """All that is due, acknowledged at once."""
        batch = self.store.batch(time.time_ns())
        for each in self.encoder.requests(batch):
            request = urllib.request.Request(
                f"{url}/opentelemetry/v1/metrics", each.body, {"Content-Type": "application/x-protobuf"}
            )
            urllib.request.urlopen(request, timeout=60).close()
            self.points += each.points
        self.store.acknowledge(batch)


def processes() -> list[Attributes]:
    """Those of one host."""
    return [
        (
            ("process.pid", 1000 + p),
            ("process.executable.name", "python3"),
            ("kernob.service", f"service-{p % SERVICES}"),
        )
        for p in range(PROCESSES)
    ]


def of_itself(url: str) -> dict[str, float]:
    """Its own metrics, summed over labels that are not asked for."""
    found: dict[str, float] = {}
    for line in urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            found[name.partition("{")[0]] = found.get(name.partition("{")[0], 0.0) + float(value)
    return found


def run(program: str, hosts: int, seconds: float) -> None:
    """Bring it up, feed it, print what it took."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as data:
        words = [program, f"-storageDataPath={data}", f"-httpListenAddr=127.0.0.1:{port}", *OPTIONS]
        server = subprocess.Popen(words)
        try:
            victoria = Victoria(url)
            while not victoria.healthy():
                time.sleep(0.2)
            fleet = [Host(number, np.random.default_rng(number)) for number in range(hosts)]
            before, began_s = of_itself(url), time.monotonic()
            late_s = feed(fleet, url, began_s + seconds)
            took_s = time.monotonic() - began_s
            victoria.flush()
            report(of_itself(url), before, fleet, took_s, late_s)
        finally:
            server.terminate()
            server.wait()


def feed(fleet: list[Host], url: str, until_s: float) -> float:
    """Every host once an interval, spread over it; how late the latest one was, in seconds."""
    due_s, late_s = time.monotonic(), 0.0
    while due_s < until_s:
        for host in fleet:
            time.sleep(max(0.0, due_s - time.monotonic()))
            late_s = max(late_s, time.monotonic() - due_s)
            host.live()
            host.send(url)
            due_s += INTERVAL_S / len(fleet)
    return late_s


def report(
    now: dict[str, float],
    before: dict[str, float],
    fleet: list[Host],
    took_s: float,
    late_s: float,
) -> None:
    """Print it."""
    rows = now["vm_rows_inserted_total"] - before["vm_rows_inserted_total"]
    cpu_s = now["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    size, each = now["vm_data_size_bytes"], now["vm_data_size_bytes"] / now["vm_rows"]
    series = now["vm_new_timeseries_created_total"] - before.get("vm_new_timeseries_created_total", 0.0)
    resident, sent = now["process_resident_memory_bytes"] / 2**20, sum(host.points for host in fleet)
    a_second = rows / took_s
    print(f"hosts {len(fleet)}, {took_s:.0f} s, the latest send {late_s:.1f} s late")
    print(f"series {series:.0f}, {series / len(fleet):.0f} a host")
    print(f"points sent {sent}, samples stored {rows:.0f}, {a_second:.0f} a second")
    print(f"CPU {cpu_s:.0f} s, {cpu_s / took_s:.1%} of a core; resident {resident:.0f} MiB")
    print(f"on disk {size / 1e6:.1f} MB with its index, {each:.2f} bytes a sample")
    print(f"a day: {a_second * 0.0864:.0f} million samples, {a_second * 86_400 * each / 1e9:.2f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program")
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    run(options.program, options.hosts, options.seconds)
