# SPDX-License-Identifier: Apache-2.0
"""Struct offsets without BTF: asked of the running kernel's own headers, by the compiler.

Each offset is compiled into a function that returns it; the number is read back from the one
instruction. Needs /lib/modules/$(uname -r)/build or /sys/kernel/kheaders.tar.xz. Called by `session`.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from kernob.errors import BtfError, CompileError
from kernob.kernel import compiler, offsets

_INCLUDES = (
    "net/sock.h",
    "net/inet_hashtables.h",
    "linux/tcp.h",
    "linux/net.h",
    "linux/skbuff.h",
    "linux/errqueue.h",
    "linux/netdevice.h",
    "net/net_namespace.h",
    "linux/sched.h",
    "linux/sched/signal.h",
    "linux/nsproxy.h",
    "linux/pid.h",
    "linux/mm_types.h",
    "linux/fs.h",
    "linux/dcache.h",
    "linux/fdtable.h",
    "linux/cgroup-defs.h",
    "linux/kernfs.h",
)
_KHEADERS = Path("/sys/kernel/kheaders.tar.xz")


def offsets_from_headers(why_no_btf: str, cache_dir: Path | None) -> tuple[dict[str, int], str]:
    """(macros as offsets.from_btf gives, where they came from). Raises BtfError with what to install."""
    release = os.uname().release
    build = Path(f"/lib/modules/{release}/build")
    if not build.exists() and not _KHEADERS.exists():
        raise BtfError(
            f"no type information: {why_no_btf}, and no headers at {build}; install linux-headers-{release}"
        )
    choice = dict.fromkeys(offsets.FIELDS, 0)
    while True:
        fields = {macro: paths[min(choice[macro], len(paths) - 1)] for macro, paths in offsets.FIELDS.items()}
        try:
            return _measure(fields, cache_dir), str(build if build.exists() else _KHEADERS)
        except CompileError as error:
            # older and newer kernels name some members otherwise: step those that were refused
            refused = [
                macro
                for macro, path in fields.items()
                if f"'{path.rsplit('.', 1)[-1]}'" in str(error)
                and choice[macro] + 1 < len(offsets.FIELDS[macro])
            ]
            if not refused:
                raise BtfError(f"no BTF ({why_no_btf}), and the headers do not compile: {error}") from error
            for macro in refused:
                choice[macro] += 1


def _measure(fields: dict[str, str], cache_dir: Path | None) -> dict[str, int]:
    lines = [f"#include <{name}>" for name in _INCLUDES]
    for macro, path in fields.items():
        struct_name, _, member = path.partition(".")
        lines.append(
            f"int measure_{macro}(void *ctx) {{ return __builtin_offsetof(struct {struct_name}, {member}); }}"
        )
    lines.append("int measure_CGROUP_V1_SUBSYS(void *ctx) { return pids_cgrp_id; }")
    names = tuple(f"measure_{macro}" for macro in (*fields, "CGROUP_V1_SUBSYS"))
    compiled = compiler.compile_text("\n".join(lines) + "\n", names, {}, cache_dir, None)
    return {
        name.removeprefix("measure_"): struct.unpack_from("<i", compiled.programs[name].code, 4)[0]
        for name in names
    }
