# SPDX-License-Identifier: Apache-2.0
"""Who is speaking: the resource attributes that stand with everything Kernob exports.

Enters: the user's resource attributes and the roots of /proc and the file system. Leaves: attributes
for `encode` and `telemetry`. Called once, by the agent. Names: OpenTelemetry semantic conventions,
Service, Host and Operating System resources.
"""

from __future__ import annotations

import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kernob.model import Attributes

_INSTANCE_NAMESPACE: Final = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
"""The namespace semantic conventions give for service.instance.id made from an inherent unique id."""

_MACHINE_ID_FILES: Final = ("etc/machine-id", "var/lib/dbus/machine-id")
_OS_RELEASE_FILES: Final = ("etc/os-release", "usr/lib/os-release")


def host_roots(proc_root: Path = Path("/proc"), root: Path = Path("/")) -> tuple[Path, ...]:
    """Return the host's file system as seen through process 1, then our own (they differ in a container)."""
    return (proc_root / "1" / "root", root)


def _first_text(roots: Iterable[Path], names: Iterable[str]) -> str:
    """Return the text of the first of the files that can be read and is not empty; "" if none."""
    names = tuple(names)
    for path in (root / name for root in roots for name in names):
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue  # absent or not ours to read: the next one may do
        if text:
            return text
    return ""


def machine_id(roots: Iterable[Path]) -> str:
    """Return the host's machine id (machine-id(5): 32 hexadecimal digits), or "" where it has none."""
    text = _first_text(roots, _MACHINE_ID_FILES)
    return text if len(text) == 32 and all(letter in "0123456789abcdef" for letter in text) else ""


def os_version(roots: Iterable[Path]) -> str:
    """Return the distribution's version (os-release(5): VERSION_ID), or "" where it says none."""
    for line in _first_text(roots, _OS_RELEASE_FILES).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "VERSION_ID":
            return value.strip().strip("'\"")
    return ""


def build_resource(
    configured: Iterable[tuple[str, str]],
    version: str,
    roots: Iterable[Path] = (),
    host: str = "",
) -> Attributes:
    """Return the resource's attributes; `configured` ones come before what is found out here.

    `roots` (default: `host_roots()`) are searched in order for machine-id and os-release; `host` is
    the host's name (default: what the kernel says). service.instance.id is the same after every
    restart and reboot: it is derived from the machine id, or without one from the host's name.
    """
    roots = tuple(roots) or host_roots()
    host = host or socket.gethostname()
    identity = machine_id(roots)
    found = {
        "service.name": "kernob",
        "service.version": version,
        "service.instance.id": str(uuid.uuid5(_INSTANCE_NAMESPACE, identity or host)),
        "host.name": host,
        "host.id": identity,
        "os.type": "linux",
        "os.version": os_version(roots),
    }
    found.update(configured)
    # the kernel takes any bytes for a host's name; OTLP takes Unicode
    return tuple((key, value.encode("utf-8", "replace").decode()) for key, value in found.items() if value)
