# SPDX-License-Identifier: Apache-2.0
"""Probes on functions of user space: a program, loaded once, on as many libraries as there come to be.

In: an open file, a symbol's offset in it, a loaded program. Out: descriptors whose closing takes the probe
away. A probe sits on the file's inode: in every process that maps it, now and later. There are two ways, and
neither needs tracefs: BPF's own link (Linux 6.6), and the PMU "uprobe" (4.17), for which the kernel wants
CAP_SYS_ADMIN each time. Called by `libraries`; `attach` loads the programs like any other.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernob.errors import AttachError
from kernob.kernel import programs, syscall
from kernob.kernel.attach import Link, Loader
from kernob.kernel.programs import Program
from kernob.kernel.symbols import entry_offset

PMU = Path("/sys/bus/event_source/devices/uprobe")
_ATTR_BYTES = 112
_RETURN = 1  # BPF_F_UPROBE_MULTI_RETURN

Prober = Callable[[Program, int, int, bool], int]
"""Puts a program on the instruction at an offset of an open file, or on the return from there; returns a
descriptor whose closing takes it away. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Uprobe:
    """An Attachment that loads a program for the functions named in `target`; libraries come later."""

    target: str
    program: str
    kind: str = "uprobe"

    def attach(self, loader: Loader) -> Link | None:
        """See attach.Attachment. Raises AttachError where this kernel has no uprobes."""
        pmu_type()
        return _tried(Link(self.target, loader.load(self.program, programs.KPROBE)), probe)


@dataclass(frozen=True, slots=True)
class UprobeMulti:
    """The same, for BPF's own link (Linux 6.6)."""

    target: str
    program: str
    kind: str = "uprobe_multi"

    def attach(self, loader: Loader) -> Link | None:
        """See attach.Attachment."""
        program = loader.load(self.program, programs.KPROBE, programs.TRACE_UPROBE_MULTI)
        return _tried(Link(self.target, program), probe_by_link)


def _tried(link: Link, way: Prober) -> Link:
    """Probes where this program began, for a moment: whether that works is known only by doing it."""
    own = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(way(link.program, own, entry_offset(own), False))
    except OSError as error:
        link.close()
        hint = " (needs CAP_SYS_ADMIN)" if isinstance(error, PermissionError) else ""
        raise AttachError(f"{link.target}: uprobe: {error.strerror}{hint}") from error
    finally:
        os.close(own)
    return link


def pmu_type() -> int:
    """The number of the uprobe PMU. Raises AttachError where there is none."""
    try:
        return int((PMU / "type").read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise AttachError("this kernel has no uprobes (CONFIG_UPROBE_EVENTS)") from error


def probe(program: Program, file_fd: int, offset: int, at_return: bool) -> int:
    """Puts `program` on the instruction at `offset` of a file; closing the descriptor takes it away.

    Raises OSError: EACCES without CAP_SYS_ADMIN, EINVAL for a file that has no such place.
    """
    path = ctypes.create_string_buffer(f"/proc/self/fd/{file_fd}".encode())
    retprobe = 1 if at_return else 0  # bit 0 of config: /sys/bus/event_source/devices/uprobe/format/retprobe
    attr = struct.pack("=IIQQQQIIIIQQ", pmu_type(), _ATTR_BYTES, retprobe, 1, 0, 0, 0, 0, 1, 0,
                       syscall.pointer(path), offset)  # fmt: skip
    fd = syscall.perf_event_open(attr.ljust(_ATTR_BYTES, b"\0"), cpu=0)
    try:
        syscall.run_at(fd, program.fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def probe_by_link(program: Program, file_fd: int, offset: int, at_return: bool) -> int:
    """The same by a BPF link; `program` was loaded for it. Raises OSError."""
    path = ctypes.create_string_buffer(f"/proc/self/fd/{file_fd}".encode())
    offsets = ctypes.create_string_buffer(struct.pack("=Q", offset), 8)
    head = struct.pack("=IIII", program.fd, 0, programs.TRACE_UPROBE_MULTI, 0)
    flags = _RETURN if at_return else 0
    rest = struct.pack("=QQQQIIII", syscall.pointer(path), syscall.pointer(offsets), 0, 0, 1, flags, 0, 0)
    return syscall.bpf(syscall.LINK_CREATE, head + rest)
