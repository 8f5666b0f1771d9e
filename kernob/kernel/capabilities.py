# SPDX-License-Identifier: Apache-2.0
"""What this machine offers to Kernob: kernel, permissions, mounts, type information, compiler.

In: /proc and /sys. Out: KernelFacts, read by `doctor`. Nothing here decides anything: hooks are tried,
not predicted; the facts explain why one was refused and what to do about it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kernob.errors import PreconditionError
from kernob.kernel import mounts
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

NEEDED = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE")
"""By root: for attaching the first two, for other users' /proc/PID and containers' names the third."""

FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
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
    "confidentiality" or "unknown"; `headers` and `btf` are paths, "" where there are none. `may_mount` says
    whether Kernob can mount for itself what is missing, `sees_host` whether /proc shows all processes.
    """

    release: str
    architecture: str
    uid: int
    capabilities: tuple[str, ...]
    lockdown: str
    btf: str
    headers: str
    mounts: dict[str, str]
    may_mount: bool
    bcc: bool
    in_container: bool
    sees_host: bool


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
        may_mount=mounts.may_mount("tracefs"),
        bcc=(bcc := find_spec("bcc")) is not None and bcc.origin is not None,
        in_container=in_container(),
        sees_host=pid_namespace_is_the_hosts(),
    )


def in_container(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> bool:
    """Whether Docker, Podman or nspawn started us; each leaves its own mark."""
    marks = (root / ".dockerenv", root / "run/.containerenv", root / "run/host/container-manager")
    return any(mark.exists() for mark in marks) or "container" in environ


def pid_namespace_is_the_hosts(proc_root: Path = Path("/proc")) -> bool:
    """Whether this /proc numbers processes as the kernel does; True where that may not be looked at."""
    try:
        return str((proc_root / "1/ns/pid").readlink()) == FIRST_PID_NAMESPACE
    except OSError:
        return True


def check_view(proc_root: Path) -> None:
    """Raises PreconditionError, one line, where PIDs that programs report mean other processes in /proc."""
    if not pid_namespace_is_the_hosts(proc_root):
        raise PreconditionError(
            f"{proc_root} shows the processes of a PID namespace, not the host's: start the container with "
            "pid: host (docker run --pid=host), or set KERNOB_PROC_ROOT to where the host's /proc is mounted"
        )


def _capabilities() -> tuple[str, ...]:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return tuple(name for bit, name in CAPABILITIES.items() if bits >> bit & 1)
    return ()


def _lockdown() -> str:
    """The word in brackets of security/lockdown, of an own securityfs where the usual one is not mounted."""
    try:
        if _LOCKDOWN.exists():
            words = _LOCKDOWN.read_text(encoding="ascii").split()
        else:
            with mounts.PrivateMount("securityfs") as own:
                words = (own.path / "lockdown").read_text(encoding="ascii").split()
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
        where = "as the container's root" if facts.in_container else "as root: sudo kernob doctor"
        lines.append(f"run {where}")
    elif missing := missing_capabilities(facts.capabilities):
        how = "cap_add" if facts.in_container else "CapabilityBoundingSet="
        names = ", ".join(name.removeprefix("CAP_") for name in missing)
        lines.append(f"capabilities are missing: give it {names} ({how}), or run it privileged")
    if facts.in_container and not facts.sees_host:
        lines.append("this container sees its own processes only: start it with pid: host")
    if not facts.bcc:
        lines.append("install BCC: apt-get install python3-bpfcc")
    if not facts.btf and not facts.headers:
        lines.append(_for_types(facts))
    if facts.lockdown == "confidentiality":
        lines.append(
            "lockdown=confidentiality keeps BPF from reading kernel memory: boot with integrity or none"
        )
    if not facts.mounts["tracefs"] and not facts.may_mount:
        lines.append(_for_tracefs(facts))
    return tuple(lines)


def missing_capabilities(held: tuple[str, ...]) -> tuple[str, ...]:
    """Those that attaching needs and that are not held; CAP_SYS_ADMIN includes the first two."""
    implied = ("CAP_BPF", "CAP_PERFMON") if "CAP_SYS_ADMIN" in held else ()
    return tuple(name for name in NEEDED if name not in held and name not in implied)


def _for_types(facts: KernelFacts) -> str:
    line = f"no type information: install linux-headers-{facts.release}"
    if facts.in_container:
        line += " on the host and mount its /lib/modules and /usr/src here, read-only"
    return line


def _for_tracefs(facts: KernelFacts) -> str:
    line = "tracefs is not mounted and may not be mounted here; kprobes and system calls need it: "
    if facts.in_container:
        return line + "mount the host's /sys/kernel/tracing into the container"
    return line + "mount -t tracefs tracefs /sys/kernel/tracing"
