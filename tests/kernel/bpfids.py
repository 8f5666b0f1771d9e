# SPDX-License-Identifier: Apache-2.0
"""Which BPF objects exist in the kernel, by bpf(2) itself, so that no bpftool is needed.

Nothing enters; ids leave. Used by the tests that hold the agent to leaving nothing behind.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from pathlib import Path

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
# enum bpf_cmd: *_GET_NEXT_ID
_NEXT_ID = {"prog": 11, "map": 12, "btf": 23, "link": 31}
_HELD = re.compile(r"^(prog|map|btf|link)_id:\s*(\d+)$", re.MULTILINE)

_libc = ctypes.CDLL(None, use_errno=True)

Ids = set[tuple[str, int]]


def all_ids() -> Ids:
    """(kind, id) of every program, map, type information and link in the kernel. Needs root."""
    found: Ids = set()
    for kind, command in _NEXT_ID.items():
        last = 0
        while (following := _next(command, last)) is not None:
            found.add((kind, following))
            last = following
    return found


def _next(command: int, start: int) -> int | None:
    attributes = bytearray(struct.pack("=III", start, 0, 0) + bytes(108))
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    if _libc.syscall(_SYS_BPF, command, buffer, len(attributes)) < 0:
        error = ctypes.get_errno()
        if error == 2:  # ENOENT: that was the last
            return None
        raise OSError(error, os.strerror(error))
    (following,) = struct.unpack_from("=I", attributes, 4)
    return int(following)


def held_ids() -> Ids:
    """(kind, id) of what living processes hold descriptors of."""
    found: Ids = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            descriptors = list((process / "fdinfo").iterdir())
        except OSError:  # the process is gone
            continue
        for descriptor in descriptors:
            try:
                text = descriptor.read_text()
            except OSError:  # the process or its descriptor is gone
                continue
            found |= {(kind, int(number)) for kind, number in _HELD.findall(text)}
    return found


def left_behind(before: Ids) -> Ids:
    """What exists now, did not exist before, and is nobody's: left attached or pinned by a dead process."""
    return all_ids() - before - held_ids()
