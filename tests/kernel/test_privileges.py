# SPDX-License-Identifier: Apache-2.0
"""What the running agent may still do once it is attached, and that it still counts exactly."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from harness import Agent, differences, run_workload, running_agent, wait_until

TWO, THREE = "CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN"
BITS = {TWO: 1 << 2 | 1 << 19, THREE: 1 << 2 | 1 << 19 | 1 << 21}
RELEASE = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
KEPT = TWO if RELEASE >= (6, 6) else THREE
"""Probes on a library that appears later take the third before Linux 6.6, whose links for uprobes do not."""


def held(agent: Agent, field: str) -> set[int]:
    """The values of a field of /proc/PID/status over all threads of the agent."""
    found = set()
    for status in Path(f"/proc/{agent.pid}/task").glob("*/status"):
        try:
            text = status.read_text()
        except (FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            continue
        lines = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        found.add(int(lines[field], 16))
    return found


def check(agent: Agent, kept: str = KEPT) -> None:
    """Every thread keeps these, in every set, and no program can get more."""
    for field in ("CapPrm", "CapEff", "CapBnd"):
        assert held(agent, field) == {BITS[kept]}
    assert held(agent, "CapInh") == {0}
    assert held(agent, "NoNewPrivs") == {1}


@pytest.mark.parametrize(
    ("names", "kept"), [pytest.param("true", KEPT, marks=pytest.mark.lane), ("false", TWO)]
)
def test_after_attaching_the_agent_keeps_few_capabilities_and_counts_exactly(
    agents: Path, names: str, kept: str
) -> None:
    """Reading maps, /proc and ending need no more than CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE."""
    with running_agent(agents / f"dropped-names-{names}", names=names) as agent:
        agent.wait_exports(1)
        processes = run_workload("scenarios", "two_processes")[0].demand().processes
        check(agent, kept)
        totals = agent.stop()
    assert f"capabilities kept after attaching: {kept}\n" in agent.log.read_text()
    assert differences(totals, processes) == []


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_threads_of_libraries_keep_no_more(
    agents: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC has a handful of its own, which are there before anything attaches."""
    original = harness.environment

    def environment(**settings: object) -> dict[str, str]:
        others = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        return original(**settings) | others | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}

    monkeypatch.setattr(harness, "environment", environment)
    with running_agent(agents / f"dropped-{protocol[:4]}") as agent:
        agent.wait_exports(2)
        check(agent)
        names = [comm.read_text() for comm in Path(f"/proc/{agent.pid}/task").glob("*/comm")]
        assert any(name.startswith("grpc") for name in names) is (protocol == "grpc")
        agent.process.terminate()
        assert agent.process.wait(harness.STOP_LIMIT_S) == 0


PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")


@pytest.fixture
def perf_by_capability() -> Iterator[None]:
    """Debian's kernels, as they come, have no tracepoint or kprobe for whoever lacks CAP_SYS_ADMIN."""
    before = PARANOID.read_text()
    if int(before) > 2:
        PARANOID.write_text("2")
    yield
    PARANOID.write_text(before)


BPF_AND_PERFMON = "cap_38,+cap_39"  # by number: older tools do not know their names


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("", 0, id="attaching only"),
        pytest.param(",+sys_ptrace", 1 << 19, id="compose/least-privilege.yaml", marks=pytest.mark.lane),
    ],
)
@pytest.mark.usefixtures("perf_by_capability")
def test_few_capabilities_are_enough_to_count_exactly(
    agents: Path, given: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CAP_BPF and CAP_PERFMON attach; what lacks more than that degrades and is said in one line."""
    if not shutil.which("setpriv"):
        pytest.skip("missing feature: setpriv")
    prefix = ["setpriv", "--bounding-set", f"-all,+{BPF_AND_PERFMON}{given}"]
    monkeypatch.setattr(harness, "PROGRAM", [*prefix, *harness.PROGRAM])
    with running_agent(agents / f"few{kept}", bpf_stats="true") as agent:
        processes = run_workload("scenarios", "two_processes")[0].demand().processes
        assert held(agent, "CapPrm") == {kept}
        totals = agent.stop()
    log = agent.log.read_text()
    assert log.count("KERNOB_BPF_STATS: programs are not timed: Operation not permitted") == 1
    assert differences(totals, processes) == []


def test_dropping_can_be_switched_off(agents: Path) -> None:
    """With KERNOB_DROP_CAPABILITIES=false the agent keeps what it was started with."""
    mine = Path("/proc/self/status").read_text()
    with running_agent(agents / "kept", drop_capabilities="false") as agent:
        assert f"CapPrm:\t{next(iter(held(agent, 'CapPrm'))):016x}" in mine
        assert held(agent, "NoNewPrivs") == {0}


def test_a_signal_that_comes_as_it_wakes_is_heeded(agents: Path) -> None:
    """Whoever is stopped gets a signal in whichever thread runs first; it must end all the same."""
    with running_agent(agents / "stopped") as agent:
        agent.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: "\nState:\tT" in Path(f"/proc/{agent.pid}/status").read_text(), "it to stop")
        agent.process.send_signal(signal.SIGCONT)
        agent.stop()
