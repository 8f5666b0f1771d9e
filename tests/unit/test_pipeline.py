# SPDX-License-Identifier: Apache-2.0
"""What the pipeline decides by itself, without a kernel: it is made, and not entered."""

from __future__ import annotations

import resource
from pathlib import Path

from kernob.config import Settings
from kernob.model import ProcessInfo, ProcessKey
from kernob.pipeline import Pipeline
from kernob.state.processes import raw_key
from tests.unit.proc_tree import add_process

RULES = """
[[service]]
name = "billing"
cgroup = "/system.slice/acme-*.service"
"""


def test_service_rules_name_programs_as_they_name_processes(tmp_path: Path) -> None:
    """A [[service]] rule holds for starts, exits and crash loops, too; what none fits has its unit's name."""
    file = tmp_path / "network.toml"
    file.write_text(RULES)
    pipeline = Pipeline(Settings(network_file=file, container_names=False))
    info = ProcessInfo(ProcessKey(0, 0, 0), "python3", "python3", cgroup=("system.slice", "acme-7.service"))
    other = ProcessInfo(ProcessKey(0, 0, 0), "nginx", "nginx", cgroup=("system.slice", "nginx.service"))
    assert [pipeline._named(each, b"").service for each in (info, other)] == ["billing", "nginx"]


def test_who_cannot_be_looked_at_has_not_ended(tmp_path: Path) -> None:
    """Without a descriptor left for /proc no process counts as ended; with one, those that are not there."""
    add_process(tmp_path, 7)
    pipeline = Pipeline(Settings(proc_root=tmp_path / "proc", container_names=False))
    processes = pipeline._traffic.processes
    for pid in (7, 8):
        processes._take_in(raw_key(ProcessKey(pid, 123456, 1)), None)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, files[1]))
    try:
        pipeline._check_liveness(1e9)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
    assert len(processes.alive()) == 2
    pipeline._check_liveness(2e9)
    assert [process.key.pid for process in processes.alive()] == [7]
