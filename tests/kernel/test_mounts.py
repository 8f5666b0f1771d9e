# SPDX-License-Identifier: Apache-2.0
"""kernel.mounts and what stands on it: file systems nobody mounted, and nothing left of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from harness import ROOT, differences, run_workload, running_agent

from kernob.errors import AttachError
from kernob.kernel import tracefs
from kernob.kernel.mounts import PrivateMount, may_mount

pytestmark = pytest.mark.lane

OURS = {"tracefs", "debugfs", "bpf", "cgroup", "cgroup2"}


def mounts(path: Path = Path("/proc/self/mounts")) -> list[str]:
    """What is mounted of the kinds that Kernob could mount; those of containers come and go meanwhile."""
    return [line for line in path.read_text().splitlines() if line.split()[2] in OURS]


def without_tracefs(script: str, *prefix: str) -> str:
    """What a script prints in a mount namespace where neither tracefs nor debugfs is mounted."""
    hide = "umount -q -l -a -t tracefs,debugfs 2>/dev/null"
    command = ["unshare", "-m", "sh", "-c", f'{hide}; exec "$@"', "sh", *prefix, sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_private_mount_is_seen_by_nobody_and_ends_with_its_owner() -> None:
    """It is in no list of mounts; closed twice it is gone, once it is closed its path is."""
    before = mounts()
    with PrivateMount("tracefs") as mount:
        assert (mount.path / "events").is_dir()
        assert mounts() == before
    assert not mount.path.exists()
    mount.close()
    assert may_mount("tracefs")
    assert not may_mount("nofs")
    assert mounts() == before


def test_tracefs_is_mounted_where_nobody_did() -> None:
    """With its events and without touching any directory; released it is gone."""
    script = (
        "from pathlib import Path; from kernob.kernel import tracefs\n"
        "before = Path('/proc/self/mounts').read_text()\n"
        "print(tracefs.find())\n"
        "place = tracefs.ensure()\n"
        "print((place / 'events' / 'sched').is_dir(), tracefs.ensure() == place)\n"
        "print(Path('/proc/self/mounts').read_text() == before)\n"
        "tracefs.remove_leftovers(); tracefs.release()\n"
        "print(place.exists())\n"
    )
    assert without_tracefs(script).split() == ["None", "True", "True", "True", "False"]


def test_what_may_not_be_mounted_is_said_in_one_line() -> None:
    """Without CAP_SYS_ADMIN, as in a container with few capabilities."""
    script = (
        "from kernob.errors import AttachError; from kernob.kernel import capabilities, tracefs\n"
        "from kernob.kernel.privileges import confined\n"
        "def look():\n"
        "    try:\n        tracefs.ensure()\n"
        "    except AttachError as error:\n        print(error)\n"
        "    facts = capabilities.survey()\n"
        "    print(facts.may_mount, facts.mounts['tracefs'] == '')\n"
        "    print([line for line in capabilities.advice(facts) if 'tracefs' in line])\n"
        "confined(look)\n"
    )
    said, found, advised = without_tracefs(script).splitlines()
    assert said == "tracefs is not mounted, and Kernob may not mount its own (Operation not permitted)"
    assert found == "False True"
    assert "kprobes and system calls need it" in advised


def test_a_kernel_without_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONFIG_TRACING off."""

    def refuse(kind: str) -> PrivateMount:
        raise OSError(19, os.strerror(19))

    monkeypatch.setattr(tracefs, "_PLACES", ())
    monkeypatch.setattr(tracefs, "PrivateMount", refuse)
    with pytest.raises(AttachError, match="this kernel has no tracefs"):
        tracefs.ensure()


def test_the_agent_counts_exactly_where_nothing_is_mounted(
    agents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tracefs, debugfs, bpffs or control groups anywhere, and none of them afterwards."""
    hide = "umount -q -l -a -t tracefs,debugfs,bpf,cgroup,cgroup2 2>/dev/null"
    monkeypatch.setattr(
        "harness.PROGRAM", ["unshare", "-m", "sh", "-c", f'{hide}; exec "$@"', "sh", *harness.PROGRAM]
    )
    before = mounts()
    with running_agent(agents / "bare") as agent:
        mounted = mounts(Path(f"/proc/{agent.pid}/mounts"))
        processes = run_workload("scenarios", "two_processes")[0].demand().processes
        assert mounts(Path(f"/proc/{agent.pid}/mounts")) == mounted
        totals = agent.stop()
    assert not {line.split()[2] for line in mounted} & {"tracefs", "debugfs", "bpf", "cgroup2"}
    assert differences(totals, processes) == []
    assert mounts() == before
