# SPDX-License-Identifier: Apache-2.0
"""The root of the cgroup v2 hierarchy: what is attached there sees every process of the machine.

In: the host's /proc. Out: an open directory. Called by `attach`. A container, and any other control group
namespace, shows a subtree in its place, where a program would see that container only; so the root is
known by its number and sought where the host has it mounted, and at last mounted where nobody else sees it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kernob.errors import AttachError
from kernob.kernel.mounts import PrivateMount

_ROOT_ID = 1  # of the hierarchy's first directory, in every kernel that has cgroup_id()


def open_root(proc_root: Path = Path("/proc")) -> int:
    """A descriptor of the root directory, for the caller to close. Raises AttachError, which says why."""
    reasons: list[str] = []
    for place in _mounted(proc_root):
        descriptor = _open_if_root(place, reasons)
        if descriptor is not None:
            return descriptor
    try:
        with PrivateMount("cgroup2") as own:
            descriptor = _open_if_root(own.path, reasons)
    except OSError as error:
        reasons.append(f"Kernob may not mount its own: {error.strerror}")
        descriptor = None
    if descriptor is None:
        raise AttachError(f"the root of the cgroup2 hierarchy cannot be reached ({'; '.join(reasons)})")
    return descriptor


def _mounted(proc_root: Path) -> Iterator[Path]:
    """Where cgroup2 is mounted, here and then where the host's first process is."""
    for process, root in (("self", Path("/")), ("1", proc_root / "1" / "root")):
        where = (Path("/proc") if process == "self" else proc_root) / process / "mounts"
        try:
            lines = where.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            _device, point, kind, *_ = line.split(" ")
            if kind == "cgroup2" and "\\" not in point:  # spaces and the like, as \040
                yield root / point.lstrip("/")


def _open_if_root(place: Path, reasons: list[str]) -> int | None:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        reasons.append(f"{place}: {error.strerror}")
        return None
    if os.fstat(descriptor).st_ino == _ROOT_ID:
        return descriptor
    os.close(descriptor)
    reasons.append(f"{place} is the root of a control group namespace only")
    return None
