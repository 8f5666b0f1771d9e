# SPDX-License-Identifier: Apache-2.0
"""Processes in a container's control group: called by its name, exact, also when both are long gone.

No engine is needed: the control group is made here, and a directory stands in for the host's root with
what Docker would keep there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import differences, flow_differences, run_workload, running_agent, wait_until

IDS = {name: letter * 64 for name, letter in (("web", "a"), ("job", "b"), ("nameless", "c"))}


def hierarchies() -> list[Path]:
    """Where control groups may be made: version 2, and of version 1 the one that tells containers."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, point, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "pids" in options.split(",")):
            found.append(Path(point))
    return found


@pytest.fixture
def groups() -> Iterator[dict[str, tuple[str, ...]]]:
    """What to put before a command so that it runs in the container of that name; removed at the end."""
    if not hierarchies():
        pytest.skip("missing feature: control groups")
    parents = [root / f"kernob-test-{os.getpid()}" for root in hierarchies()]
    try:
        prefixes: dict[str, tuple[str, ...]] = {}
        for name, container_id in IDS.items():
            for parent in parents:
                (parent / container_id).mkdir(parents=True)
            join = " && ".join(f"echo $$ > {parent / container_id}/cgroup.procs" for parent in parents)
            prefixes[name] = ("sh", "-c", f'{join} && exec "$@"', "sh")
        yield prefixes
    finally:
        for parent in parents:
            for directory in (*parent.glob("*/"), parent):
                _remove(directory)


def _remove(directory: Path) -> None:
    """A group whose last process has ended a moment ago may still be busy."""
    for _ in range(500):
        with contextlib.suppress(FileNotFoundError):
            try:
                directory.rmdir()
            except OSError:
                time.sleep(0.01)
                continue
        return


def keep(host: Path, name: str) -> Path:
    """Writes what Docker keeps of a container: beside, then moved over."""
    directory = host / "var/lib/docker/containers" / IDS[name]
    directory.mkdir(parents=True)
    draft = directory / ".tmp-config.v2.json1"
    draft.write_text(json.dumps({"ID": IDS[name], "Name": f"/{name}"}))
    draft.rename(directory / "config.v2.json")
    return directory


@pytest.mark.lane
def test_bytes_of_a_container_carry_its_name(agents: Path, groups: dict[str, tuple[str, ...]]) -> None:
    """One that stays, one that is removed before the agent looks, one without a name: all exact."""
    host = agents / "named" / "host"
    keep(host, "web")
    with running_agent(agents / "named", host_root=host, scrape_interval=300, log_level="debug") as agent:
        processes = {}
        for name, prefix in groups.items():
            own = keep(host, "job") if name == "job" else None
            if own:
                wait_until(lambda: " is called job\n" in agent.log.read_text(), "the container to be seen")
            processes[name] = run_workload("scenarios", "two_processes", prefix=prefix)[0].demand().processes
            if own:
                shutil.rmtree(own)
        totals = agent.stop()
    for name, found in processes.items():
        expected = {IDS[name][:12] if name == "nameless" else name}
        assert totals.services({process["pid"] for process in found}) == expected
    everything = [process for found in processes.values() for process in found]
    assert differences(totals, everything) == []
    assert flow_differences(totals, everything) == []
    log = agent.log.read_text()
    assert log.count(" is shown by its id") == 1
    assert f"container {IDS['nameless'][:12]} is shown by its id" in log


def test_names_can_be_switched_off(agents: Path, groups: dict[str, tuple[str, ...]]) -> None:
    """Then containers are called by their short ids, and nothing is said about it."""
    host = agents / "unnamed" / "host"
    keep(host, "web")
    with running_agent(agents / "unnamed", host_root=host, container_names="false") as agent:
        processes = run_workload("scenarios", "two_processes", prefix=groups["web"])[0].demand().processes
        totals = agent.stop()
    assert totals.services({process["pid"] for process in processes}) == {IDS["web"][:12]}
    assert " is shown by its id" not in agent.log.read_text()
