# SPDX-License-Identifier: Apache-2.0
"""A /proc made by hand, and a reader of it."""

from __future__ import annotations

import os
from pathlib import Path

from kernob.kernel.procfs import ProcFs
from kernob.state.names import sanitize, split_args

STAT = "{pid} ({comm}) S 1 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {ticks} 12345 99 4294967295\n"
HOST_NETNS, OTHER_NETNS = 4026531840, 4026532300


def reader(root: Path) -> ProcFs:
    """Make a reader of `root`/proc and `root`/sys."""
    return ProcFs(root / "proc", sanitize, split_args, root / "sys")


def add_process(root: Path, pid: int, **files: bytes | str) -> Path:
    """Add /proc/`pid`: `exe` and `netns` become links, all else files; stat and comm have defaults."""
    directory = root / "proc" / str(pid)
    (directory / "ns").mkdir(parents=True)
    (directory / "net").mkdir()
    contents = {"stat": STAT.format(pid=pid, comm="nginx", ticks=123456), "comm": "nginx\n", **files}
    if "exe" in contents:
        os.symlink(contents.pop("exe"), os.fsencode(directory / "exe"))  # noqa: PTH211 - bytes too
    if "netns" in contents:
        (directory / "ns" / "net").symlink_to(str(contents.pop("netns")))
    for name, content in contents.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (directory / name.replace("net_", "net/")).write_bytes(raw)
    return directory


def own_netns() -> int:
    """Inode number of this process's network namespace, as the running kernel prints it."""
    return int(str(Path("/proc/self/ns/net").readlink()).removeprefix("net:[").removesuffix("]"))
