# SPDX-License-Identifier: Apache-2.0
"""The service a process belongs to (TERMS.md, Service): container, else unit, else program.

In: a `ProcessInfo` with the names of its control groups. Out: the name an operator would use.
Called once for each new process. Nothing here reads a file: names of containers are injected.

Control groups are recognised by the names that runtimes and service managers give them, on cgroup v1
and v2 alike, whether the runtime's driver is systemd (docker-<id>.scope) or cgroupfs (/docker/<id>).
The path may lack its beginning (the kernel side keeps four names), so every rule looks from the leaf up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kernob.model import ProcessInfo
from kernob.state import interpreters
from kernob.state.text import sanitize

ContainerNames = Callable[[str], "str | None"]
"""Looks a container's full id up; returns its name, or None when it is not known."""

SHORT_ID_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Container:
    """The innermost container of a control group path: its `id` (hex) or the `name` the path tells."""

    id: str = ""
    name: str = ""


_RUNTIME_ID = re.compile(
    r"(?:.*[-:])?(?:docker|crio|libpod|libpod-payload|cri-containerd|nerdctl|containerd)[-:]"
    r"(?P<id>[0-9a-f]{12,64})(?:\.scope)?\Z"
)
_LONG_ID = re.compile(r"(?:(?P<runtime>[\w.:-]*)[-:])?(?P<id>[0-9a-f]{64})(?:\.scope)?\Z")
_NAMED = (
    re.compile(r"lxc\.payload\.(?P<name>.+)\Z"),
    re.compile(r"systemd-nspawn@(?P<name>.+)\.service\Z"),
    # libvirt puts the domain's number, or the PID of its init, before the name it was given.
    re.compile(r"machine-(?:(?:qemu|lxc)-\d+-)?(?P<name>.+)\.scope\Z"),
    re.compile(r"(?:qemu|lxc)-\d+-(?P<name>.+)\.libvirt-(?:qemu|lxc)\Z"),
    re.compile(
        r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(?P<name>.+)\.scope\Z"
    ),  # Nomad: allocation.task
)
_LXC_PARENTS = frozenset(("lxc", "lxc.payload"))
_BUILD_STEP = re.compile(r"docker-[0-9a-z]{25}\.scope\Z")  # BuildKit numbers the steps of an image's build

_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_TRANSIENT = re.compile(
    r"run-(?:[ru][0-9a-f]+|p\d+-i\d+)\Z"
)  # systemd-run without --unit: a random name, a PID
_BUS_ACTIVATED = re.compile(r"dbus-:\d+\.\d+-(?P<name>.+)@\d+\Z")
_PER_CONNECTION = re.compile(r"\d+-(?:\d+-)?(?:.+:\d+-.+:\d+|\d+(?:_\d+)?-\d+|unknown)\Z")
_RANDOM_INSTANCE = re.compile(r"[0-9a-f]{32}\Z")
_HOSTS_OTHERS = re.compile(
    r"user@.*"
    r"|(?:ana|[bdf])?cron(?:d|ie)?|atd"
    r"|pm2(?:-.*)?|supervisor(?:d|-.*)?|runit|runsvdir(?:-start)?(?:@.*)?|s6(?:-svscan|-rc)?|svscan(?:boot)?"
    r"|daemontools|monit|circusd?|god"
    r"|sshd?(?:@.*)?|dropbear(?:@.*)?|(?:serial-|console-|container-)?getty(?:@.*)?|xrdp(?:-sesman)?"
    r"|tmux|screen|rc-local|rc\.local|local|cloud-(?:init|final|config)(?:-local)?"
)
"""Units whose processes belong to somebody else: logins, schedulers, process managers, boot scripts."""


def service_of(info: ProcessInfo, container_names: ContainerNames | None = None) -> str:
    """Name the service of a process: 1..64 printable characters, never its PID, never a port.

    1. In a container: its name, from the path or from `container_names`, else its 12-digit short id.
    2. Else the systemd unit without ".service" (nginx, postgresql@15-main), user units included, or
       the OpenRC service; not where the unit only hosts others' programs: user@UID, cron, at, pm2,
       supervisord, runit, s6, logins, boot scripts, and not transient units with a random name.
    3. Else for interpreters what they run: script or jar basename, whole module name, main class.
    4. Else the executable's name, or comm where there is none; "?" when nothing is known.

    A name that begins with "~" gets "_" instead: "~other" is Kernob's own.
    """
    name = sanitize(_container_name(info.cgroup, container_names) or _unit_of(info.cgroup) or _program(info))
    return "_" + name[1:] if name.startswith("~") else name


def needs_full_args(info: ProcessInfo) -> bool:
    """Whether `info.args` was cut before it told an interpreter's program, and its name depends on it.

    True for a JVM with a long class path, for example: read /proc/PID/cmdline once and ask again.
    """
    if container_of(info.cgroup) is not None or _unit_of(info.cgroup):
        return False
    return interpreters.cut_short(info.executable, info.args)


def container_of(cgroup: tuple[str, ...]) -> Container | None:
    """Find the innermost container in a control group path, given from the root down.

    >>> container_of(("system.slice", "docker-" + 64 * "a" + ".scope")).id[:12]
    'aaaaaaaaaaaa'
    """
    for depth in range(len(cgroup) - 1, -1, -1):
        found = _container_at(cgroup[depth], cgroup[depth - 1] if depth else "")
        if found is not None:
            return found
    return None


def _container_at(group: str, parent: str) -> Container | None:
    if parent in _LXC_PARENTS:
        return Container(name=group)
    if parent == "buildkit" or _BUILD_STEP.match(group):
        return Container(name="buildkit")
    text = _unescape(group)
    for pattern in _NAMED:
        match = pattern.match(text)
        if match:
            return Container(name=match["name"])
    match = _RUNTIME_ID.match(group) or _LONG_ID.match(group)
    if match is None or "conmon" in group:  # podman's and CRI-O's monitors live on the host
        return None
    if group.startswith("libpod-payload-") and parent.endswith(".service"):
        return Container(id=match["id"], name=_unit_name(parent))  # podman run --cgroups=split, Quadlet
    return Container(id=match["id"])


def _container_name(cgroup: tuple[str, ...], names: ContainerNames | None) -> str:
    container = container_of(cgroup)
    if container is None:
        return ""
    if container.id and names is not None:
        found = names(container.id)
        if found:
            return found.lstrip("/")  # Docker's own files write it with a slash
    return container.name or container.id[:SHORT_ID_LENGTH]


def _unit_of(cgroup: tuple[str, ...]) -> str:
    """Name by the innermost unit of a path, or "" where there is none or it only hosts others."""
    for depth in range(len(cgroup) - 1, -1, -1):
        group = cgroup[depth]
        if group.endswith(".service"):
            return _unit_name(group)
        if group.startswith("openrc."):
            return _lasting(group.removeprefix("openrc."))
        if depth and cgroup[depth - 1] == "openrc":
            return _lasting(group)
    return ""


def _unit_name(group: str) -> str:
    """Turn "nginx.service" into "nginx"; systemd puts "_" before names that look like kernel files."""
    return _lasting(_unescape(group.removeprefix("_").removesuffix(".service")))


def _lasting(name: str) -> str:
    """Drop from a unit's name what differs for each connection or start; "" for units that name nobody."""
    if _TRANSIENT.match(name) or _HOSTS_OTHERS.fullmatch(name):
        return ""
    bus = _BUS_ACTIVATED.match(name)
    if bus:
        return bus["name"]
    template, _, instance = name.partition("@")
    if _PER_CONNECTION.match(instance) or _RANDOM_INSTANCE.match(instance):
        return template
    return name


def _unescape(name: str) -> str:
    r"""Undo systemd's escapes: "dev\x2dshop" is "dev-shop" (systemd.unit(5), String Escaping)."""
    if "\\x" not in name:
        return name
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)
    return raw.encode("latin-1", "replace").decode("utf-8", "replace") if name.isascii() else raw


def _program(info: ProcessInfo) -> str:
    return interpreters.program_name(info.executable, info.comm, info.args)
