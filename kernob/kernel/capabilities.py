# SPDX-License-Identifier: Apache-2.0
"""What this machine offers to Kernob: kernel, permissions, mounts, type information, compiler.

In: /proc and /sys. Out: KernelFacts, read by `doctor`. Nothing here decides anything: hooks are tried,
not predicted; the facts explain why one was refused and what to do about it.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kernob.kernel import tracefs
from kernob.kernel.btf import VMLINUX

CAPABILITIES = {
    1: "CAP_DAC_OVERRIDE",
    2: "CAP_DAC_READ_SEARCH",
    12: "CAP_NET_ADMIN",
    19: "CAP_SYS_PTRACE",
    21: "CAP_SYS_ADMIN",
    24: "CAP_SYS_RESOURCE",
    38: "CAP_PERFMON",
    39: "CAP_BPF",
}
"""Those that matter to Kernob, by number (include/uapi/linux/capability.h)."""

_MOUNTS = {
    "tracefs": ("tracefs", "/sys/kernel/tracing"),
    "debugfs": ("debugfs", "/sys/kernel/debug"),
    "bpffs": ("bpf", "/sys/fs/bpf"),
    "cgroup2": ("cgroup2", "/sys/fs/cgroup"),
}


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """One machine at one moment. `mounts`: name -> mount point, "" where it is not mounted.

    `capabilities` are those of the effective set that matter here; `lockdown` is "none", "integrity",
    "confidentiality" or "unknown"; `headers` and `btf` are paths, "" where there are none.
    """

    release: str
    architecture: str
    uid: int
    capabilities: tuple[str, ...]
    lockdown: str
    btf: str
    headers: str
    mounts: dict[str, str]
    kprobes: bool
    bcc: bool
    in_container: bool


def survey() -> KernelFacts:
    """Looks around; never raises for something that is missing."""
    release = os.uname().release
    build = Path(f"/lib/modules/{release}/build")
    return KernelFacts(
        release=release,
        architecture=platform.machine(),
        uid=os.geteuid(),
        capabilities=_capabilities(),
        lockdown=_lockdown(),
        btf=str(VMLINUX) if VMLINUX.exists() else "",
        headers=str(build) if build.exists() else "",
        mounts=_mounted(),
        kprobes=bool((root := tracefs.find()) and (root / "kprobe_events").exists()),
        bcc=(bcc := find_spec("bcc")) is not None and bcc.origin is not None,
        in_container=Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
    )


def _capabilities() -> tuple[str, ...]:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return tuple(name for bit, name in CAPABILITIES.items() if bits >> bit & 1)
    return ()


def _lockdown() -> str:
    """The word in brackets of /sys/kernel/security/lockdown, which wants securityfs mounted."""
    try:
        words = Path("/sys/kernel/security/lockdown").read_text(encoding="ascii").split()
    except OSError:
        return "unknown"
    return next((word.strip("[]") for word in words if word.startswith("[")), "unknown")


def _mounted() -> dict[str, str]:
    found = dict.fromkeys(_MOUNTS, "")
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        _device, point, kind, *_ = line.split()
        for name, (wanted, _usual) in _MOUNTS.items():
            if kind == wanted and not found[name]:
                found[name] = point
    return found


def advice(facts: KernelFacts) -> tuple[str, ...]:
    """What to do about what is missing, one line each; empty when nothing is."""
    lines = []
    if facts.uid != 0:
        lines.append("run as root: sudo kernob doctor")
    if not facts.bcc:
        lines.append("install BCC: apt-get install python3-bpfcc")
    if not facts.btf and not facts.headers:
        lines.append(f"no type information: install linux-headers-{facts.release}")
    if facts.lockdown == "confidentiality":
        lines.append(
            "lockdown=confidentiality keeps BPF from reading kernel memory: boot with integrity or none"
        )
    if not facts.mounts["tracefs"]:
        lines.append(
            "tracefs is not mounted; only kprobes need it: mount -t tracefs tracefs /sys/kernel/tracing"
        )
    return tuple(lines)
