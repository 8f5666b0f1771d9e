# SPDX-License-Identifier: Apache-2.0
"""Loading a program: instructions plus maps -> a program descriptor the kernel has verified.

In: ProgramCode of `compiler`, BpfMaps. Out: a Program. Called by `attach`. The verifier's last lines
are part of the error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from kernob.errors import ProgramLoadError
from kernob.kernel import syscall
from kernob.kernel.compiler import ProgramCode
from kernob.kernel.maps import BpfMap

# enum bpf_prog_type, enum bpf_attach_type
KPROBE, TRACEPOINT, CGROUP_SKB, RAW_TRACEPOINT, TRACING = 2, 5, 8, 17, 26
NO_ATTACH_TYPE, TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT, TRACE_ITER = 0, 23, 24, 25, 28
TRACE_UPROBE_MULTI = 48
CGROUP_WAYS = {"ingress": 0, "egress": 1}

_ENOTSUPP = 524  # the kernel's own, absent from errno.h
_LOG_BYTES = 256 * 1024
_RUN_TIME_OFFSET = 192  # struct bpf_prog_info.run_time_ns, then run_cnt and recursion_misses


@dataclass(frozen=True, slots=True)
class RunStats:
    """The kernel's own account of a program (run time needs kernel.bpf_stats_enabled)."""

    run_time_ns: int
    runs: int
    recursion_misses: int


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program; whoever holds it closes it."""

    name: str
    fd: int

    def stats(self) -> RunStats:
        """Counters since load; zeros where the kernel keeps none."""
        info = syscall.object_info(self.fd, _RUN_TIME_OFFSET + 24)
        return RunStats(*struct.unpack_from("=QQQ", info, _RUN_TIME_OFFSET))

    def close(self) -> None:
        """Drops our reference; an attached program stays until its link goes too."""
        os.close(self.fd)


def load(
    code: ProgramCode,
    maps: Mapping[str, BpfMap],
    program_type: int,
    attach_type: int = NO_ATTACH_TYPE,
    attach_btf_id: int = 0,
) -> Program:
    """BPF_PROG_LOAD. Tried without a log first; refused programs are loaded again to get one.

    Raises ProgramLoadError: errno, what it usually means, the verifier's last lines.
    """
    instructions = bytearray(code.code)
    for index, map_name in code.references:
        struct.pack_into("<i", instructions, index * 8 + 4, maps[map_name].fd)
    buffer = ctypes.create_string_buffer(bytes(instructions), len(instructions))
    # the verifier log speaks C identifiers; 15 characters are what the kernel keeps of a name
    name = code.name.replace("__", "_")[:15].encode()
    license_text = ctypes.create_string_buffer(b"GPL")

    def attempt(log: ctypes.Array[ctypes.c_char] | None) -> int:
        """bpf(BPF_PROG_LOAD), the verifier's words into `log`. Returns the descriptor. Raises OSError."""
        attr = struct.pack(
            "=IIQQIIQII16sIIIIQIIQII",
            program_type,
            len(instructions) // 8,
            syscall.pointer(buffer),
            syscall.pointer(license_text),
            1 if log else 0,
            len(log) if log else 0,
            syscall.pointer(log) if log else 0,
            0,
            0,
            name,
            0,
            attach_type,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            attach_btf_id,
        )
        return syscall.bpf(syscall.PROG_LOAD, attr)

    try:
        return Program(code.name, attempt(None))
    except OSError as first:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return Program(code.name, attempt(log))
        except OSError as error:
            raise ProgramLoadError(
                f"{code.name}: {_meaning(error)}{_last_lines(log.value.decode(errors='replace'))}"
            ) from first


def _meaning(error: OSError) -> str:
    hints = {
        errno.EPERM: "not permitted (needs CAP_BPF and CAP_PERFMON, and no lockdown=confidentiality)",
        errno.EINVAL: "refused (program type or attach point unknown to this kernel)",
        errno.EACCES: "refused by the verifier",
        errno.E2BIG: "too complex for this kernel's verifier",
        _ENOTSUPP: "not supported by this kernel",
    }
    return hints.get(error.errno or 0, error.strerror or str(error))


def _last_lines(log: str, count: int = 6) -> str:
    noise = ("processed ", "verification time", "stack depth", "last_idx", "mark_precise")
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith(noise)]
    return f": {' | '.join(lines[-count:])}" if lines else ""
