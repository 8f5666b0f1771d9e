# SPDX-License-Identifier: Apache-2.0
"""What the pipeline decides by itself, without a kernel: it is made, and not entered."""

from __future__ import annotations

from pathlib import Path

from kernob.config import Settings
from kernob.model import ProcessInfo, ProcessKey
from kernob.pipeline import Pipeline

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
