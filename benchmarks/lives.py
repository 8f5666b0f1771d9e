# SPDX-License-Identifier: Apache-2.0
"""What it costs to follow who comes and goes: those who fork and exec, and the agent in a storm of them.

Run as `python -m benchmarks.lives`. First the time in the programs by the kernel's account, net of empty ones
on the same hooks; then a whole agent while processes come and go as fast as they can, and whether it
counted each of them.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.agents import AgentProcess
from benchmarks.attached import Empty
from benchmarks.table import progress, show, spread
from benchmarks.workload import Workloads
from kernob.config import load_settings
from kernob.errors import KernobError
from kernob.features.lifecycle import prepare
from kernob.kernel.programs import RunStats
from kernob.kernel.session import Session
from kernob.pipeline import kernel_options
from kernob.probes import PROBES, lifecycle

_ROUNDS = 7
_LIVES = 4_000
_STORM = 150_000
_TURNS = ("fork", "exec", "exit")
_WAYS = {"tp_btf": frozenset[str](), "raw_tp": frozenset({"tp_btf"})}


def _following(off: frozenset[str]) -> Session:
    settings = load_settings({})
    options = replace(kernel_options(settings), kinds_off=off, bpf_stats=True)
    sources = [source for probe in PROBES for source in probe.sources]
    return Session(sources, lifecycle.PROBE.hooks, options, lambda session: prepare(session, settings))


def _each_ns(stats: dict[tuple[str, str], RunStats]) -> dict[str, float]:
    """By turn: nanoseconds a run."""
    return {
        program.rpartition("_")[2]: each.run_time_ns / each.runs
        for (_probe, program), each in stats.items()
        if each.runs
    }


def in_bpf(workloads: Workloads) -> None:
    """Prints the kernel's own account of time in the programs."""
    rows = []
    for way, off in _WAYS.items():
        found: dict[str, list[dict[str, float]]] = {"empty (gross)": [], "Kernob": []}
        for i in range(_ROUNDS):
            progress(f"in BPF, {way}: round {i + 1} of {_ROUNDS}")
            with Empty(off, (lifecycle.PROBE,)) as empty:
                workloads.run("lives", _LIVES, 1, 0, 1)
                bare = _each_ns(empty.run_stats())
            with _following(off) as session:
                workloads.run("lives", _LIVES, 1, 0, 1)
                own = _each_ns(session.run_stats())
            found["empty (gross)"].append(bare)
            found["Kernob"].append({turn: own[turn] - bare[turn] for turn in _TURNS})
        for who, each in found.items():
            life = [sum(one[turn] for turn in _TURNS) for one in each]
            rows.append([way, who, *(spread([one[turn] for one in each]) for turn in _TURNS), spread(life)])
    show(
        "Lifecycle in BPF: ns a run",
        ("attached by", "programs", *_TURNS, "a life"),
        rows,
        f"{_ROUNDS} rounds; {_LIVES} processes that fork, exec and end. Kernob's without what empty programs "
        "take. Median (middle half).",
    )


def _exported(otlp: Path, name: str, attribute: str) -> dict[str, int]:
    """A counter as exported last: by the value of one attribute."""
    latest: dict[str, tuple[str, int]] = {}
    for line in otlp.read_text().splitlines():
        if f'"{name}"' not in line:
            continue
        for metric in _metrics(json.loads(line)):
            if metric["name"] == name:
                for point in metric["sum"]["dataPoints"]:
                    words = {a["key"]: a["value"].get("stringValue", "") for a in point["attributes"]}
                    series = json.dumps(point["attributes"])
                    latest[series] = (words[attribute], int(point.get("asInt", 0)))
    found: dict[str, int] = {}
    for value, count in latest.values():
        found[value] = found.get(value, 0) + count
    return {value: count for value, count in found.items() if count}


def _metrics(request: dict[str, list[dict[str, list[dict[str, list[dict[str, object]]]]]]]) -> list[dict]:  # type: ignore[type-arg]
    return [m for r in request["resourceMetrics"] for s in r["scopeMetrics"] for m in s["metrics"]]


def storm(workloads: Workloads) -> None:
    """Prints what the agent needs while it rains processes, and what it gave up."""
    rows = []
    for name, code, programs in (("one program", 0, 1), ("it fails", 1, 1), ("2,000 programs", 0, 2_000)):
        progress(f"storm: {name}")
        directory = workloads.directory / f"storm{code}-{programs}"
        otlp = directory / "otlp.jsonl"
        agent = AgentProcess(directory, {}, "--otlp-file", str(otlp))
        try:
            agent.wait_until("ready:", timeout_s=120)
            time.sleep(10)
            calm = agent.usage()
            time.sleep(20)
            before = agent.usage()
            result = workloads.run("lives", _STORM, 2, code, programs)
            storm_s = result.wall_ns / 1e9
            during = agent.usage()
            time.sleep(12)
            after = agent.usage()
        finally:
            agent.stop()
        exits = _exported(otlp, "kernob.process.exits", "process.executable.name")
        counted = sum(count for program, count in exits.items() if program.startswith("ends"))
        others, lost = exits.get("~other", 0), _exported(otlp, "kernob.lost", "kernob.cause")
        rows.append(
            [
                name,
                f"{result.operations / storm_s:,.0f}",
                f"{100 * (before.cpu_s - calm.cpu_s) / (before.at_s - calm.at_s):.1f}",
                f"{100 * (during.cpu_s - before.cpu_s) / storm_s:.1f}",
                f"{after.cpu_s - before.cpu_s:.2f}",
                f"{after.rss_mib:.0f}",
                f"{result.operations:,}",
                f"{counted:,}" + (f" + {others:,} ~other" if others else ""),
                ", ".join(f"{cause} {count:,}" for cause, count in lost.items()) or "nothing",
            ]
        )
    columns = (
        "storm of",
        "execs a second",
        "agent before, % of a core",
        "agent, % of a core",
        "agent, CPU s in all",
        "RSS, MiB",
    )
    show(
        "The agent in a storm",
        (*columns, "processes", "ends counted", "kernob.lost"),
        rows,
        "Two parents start programs that end at once. Default settings; CPU in all: until 12 s after it.",
    )


def main() -> None:
    """Runs all."""
    with Workloads() as workloads:
        workloads.program("ends", "-static", "-nostdlib")
        in_bpf(workloads)
        storm(workloads)


if __name__ == "__main__":
    try:
        main()
    except KernobError as error:
        sys.exit(f"benchmarks: {error}")
