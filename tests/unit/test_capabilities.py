# SPDX-License-Identifier: Apache-2.0
"""kernel.capabilities: what it finds on machines made by hand, and what it advises."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kernob.errors import PreconditionError
from kernob.kernel.capabilities import (
    NEEDED,
    KernelFacts,
    advice,
    check_view,
    in_container,
    missing_capabilities,
    pid_namespace_is_the_hosts,
    survey,
)

FACTS = KernelFacts(
    release="6.1.0",
    architecture="x86_64",
    uid=0,
    capabilities=NEEDED,
    lockdown="none",
    btf="/sys/kernel/btf/vmlinux",
    headers="",
    mounts={"tracefs": "", "debugfs": "", "bpffs": "", "cgroup2": ""},
    may_mount=True,
    bcc=True,
    in_container=False,
    sees_host=True,
)


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv", "run/host/container-manager"])
def test_each_runtime_leaves_a_mark(tmp_path: Path, mark: str) -> None:
    """Docker, Podman, nspawn; and the variable the last two set."""
    assert not in_container(tmp_path, {})
    assert in_container(tmp_path, {"container": "podman"})
    path = tmp_path / mark
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert in_container(tmp_path, {})


def test_a_proc_of_another_pid_namespace_is_refused(tmp_path: Path) -> None:
    """Its numbers are not the kernel's; what cannot be looked at is believed."""
    link = tmp_path / "1" / "ns" / "pid"
    link.parent.mkdir(parents=True)
    check_view(tmp_path)
    link.symlink_to("pid:[4026531836]")
    check_view(tmp_path)
    assert pid_namespace_is_the_hosts(tmp_path)
    link.unlink()
    link.symlink_to("pid:[4026532299]")
    with pytest.raises(PreconditionError, match=rf"{tmp_path} shows .* start the container with pid: host"):
        check_view(tmp_path)


def test_nothing_missing_needs_no_advice() -> None:
    """What Kernob can mount for itself counts as there; CAP_SYS_ADMIN stands for what it includes."""
    assert advice(FACTS) == ()
    old = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
    assert advice(dataclasses.replace(FACTS, capabilities=old)) == ()
    assert missing_capabilities(()) == NEEDED


@pytest.mark.parametrize(
    ("change", "on_a_host", "in_one"),
    [
        ({"uid": 1000}, "sudo kernob doctor", "run as the container's root"),
        ({"capabilities": NEEDED[2:]}, "give it BPF, PERFMON (CapabilityBound", "BPF, PERFMON (cap_add)"),
        ({"btf": ""}, "install linux-headers-6.1.0", "on the host and mount its /lib/modules and /usr/src"),
        ({"may_mount": False}, "mount -t tracefs", "mount the host's /sys/kernel/tracing into the container"),
        ({"sees_host": False}, None, "start it with pid: host"),
        ({"bcc": False}, "python3-bpfcc", "python3-bpfcc"),
        ({"lockdown": "confidentiality"}, "boot with integrity", "boot with integrity"),
    ],
)
def test_advice_fits_the_place(change: dict[str, object], on_a_host: str | None, in_one: str) -> None:
    """One line for each thing missing; in a container what to change is its definition."""
    facts = dataclasses.replace(FACTS, **change)  # type: ignore[arg-type]
    lines = advice(facts)
    assert len(lines) == (0 if on_a_host is None else 1)
    assert all((on_a_host or "") in line for line in lines)
    (line,) = advice(dataclasses.replace(facts, in_container=True))
    assert in_one in line
    assert "\n" not in line


def test_this_machine_can_be_surveyed() -> None:
    """By anybody, whatever is missing."""
    facts = survey()
    assert facts.lockdown in ("none", "integrity", "confidentiality", "unknown")
    assert set(facts.mounts) == {"tracefs", "debugfs", "bpffs", "cgroup2"}
