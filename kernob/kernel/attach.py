# SPDX-License-Identifier: Apache-2.0
"""Attach strategies as data, tried for real in order of preference.

A probe describes a hook as `first_of(...)` over candidates; a candidate is one attachment or several
that belong together (`all_of`). Each is loaded and attached on this kernel; what failed is recorded
with its reason, since feature probes lie (BCC's support_kfunc() says yes where loading is refused).
In: hooks of `probes`, a CompiledObject, maps. Out: Attached (links to close) and a HookReport.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kernob.errors import AttachError, KernelError
from kernob.kernel import cgroup_root, programs, syscall, tracefs
from kernob.kernel.btf import Btf
from kernob.kernel.compiler import CompiledObject
from kernob.kernel.maps import BpfMap
from kernob.kernel.programs import Program
from kernob.model import Attempt, HookReport, ProbeState

log = logging.getLogger(__name__)

_PERF_TYPE_TRACEPOINT, _PERF_SAMPLE_RAW = 2, 1 << 10


class Loader:
    """Loads programs of one compiled object against one set of maps. `proc_root`: the host's /proc."""

    def __init__(
        self,
        compiled: CompiledObject,
        maps: Mapping[str, BpfMap],
        btf: Btf | None,
        proc_root: Path = Path("/proc"),
    ) -> None:
        self._compiled = compiled
        self._maps = maps
        self.btf = btf
        self.proc_root = proc_root

    def load(self, name: str, program_type: int, attach_type: int = 0, btf_id: int = 0) -> Program:
        """See programs.load; raises ProgramLoadError."""
        return programs.load(self._compiled.programs[name], self._maps, program_type, attach_type, btf_id)


@dataclass(slots=True)
class Link:
    """One attachment: what must be closed, in order, to take it away again."""

    target: str
    program: Program
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def detach(self) -> None:
        """Takes the program off its hook; it stays loaded. A step that fails does not stop the others."""
        for step in reversed(self._undo):
            try:
                step()
            except OSError as error:
                log.warning("detaching %s: %s", self.target, error)
        self._undo.clear()

    def close(self) -> None:
        """Detaches and unloads."""
        self.detach()
        self.program.close()

    def on_close(self, step: Callable[[], None]) -> None:
        """Adds a step; the last one added runs first."""
        self._undo.append(step)


class Attachment(Protocol):
    """One program on one attach point."""

    @property
    def program(self) -> str:
        """The function in bpf/."""

    @property
    def kind(self) -> str:
        """The word by which configuration switches this kind off."""

    @property
    def target(self) -> str:
        """The tracepoint or function."""

    def attach(self, loader: Loader) -> Link | None:
        """Loads and attaches; None when `if_exists` and the target is not there. Raises KernelError."""


def _open_raw_tracepoint(program: Program, name: str | None) -> int:
    text = ctypes.create_string_buffer(name.encode()) if name else None
    attr = struct.pack("=QIIQ", syscall.pointer(text) if text else 0, program.fd, 0, 0)
    return syscall.bpf(syscall.RAW_TRACEPOINT_OPEN, attr)


def _tracing_link(program: Program, target: str, name: str | None) -> Link:
    link = Link(target, program)
    try:
        fd = _open_raw_tracepoint(program, name)
    except OSError as error:
        program.close()
        raise AttachError(f"{target}: attach: {error.strerror}") from error
    link.on_close(lambda: os.close(fd))
    return link


def _demand_tracepoint(name: str, loader: Loader) -> int | None:
    """Its id in BTF; None where there is no BTF to ask. Raises AttachError if this kernel has none."""
    if loader.btf is None:
        return None
    btf_id = loader.btf.tracepoint_id(name)
    if btf_id is None:
        raise AttachError(f"{name}: no such tracepoint in BTF")
    return btf_id


@dataclass(frozen=True, slots=True)
class RawTracepoint:
    """Raw tracepoint (Linux 4.17): untyped arguments, read by bpf_probe_read_kernel."""

    target: str
    program: str
    kind: str = "raw_tp"

    def attach(self, loader: Loader) -> Link | None:
        """See Attachment."""
        return _tracing_link(loader.load(self.program, programs.RAW_TRACEPOINT), self.target, self.target)


@dataclass(frozen=True, slots=True)
class TypedTracepoint:
    """Raw tracepoint with BTF-typed arguments (Linux 5.5): plain loads, the cheapest hook there is."""

    target: str
    program: str
    kind: str = "tp_btf"

    def attach(self, loader: Loader) -> Link | None:
        """See Attachment."""
        btf_id = _demand_tracepoint(self.target, loader)
        if btf_id is None:
            raise AttachError(f"{self.target}: no such tracepoint in BTF")
        program = loader.load(self.program, programs.TRACING, programs.TRACE_RAW_TP, btf_id)
        return _tracing_link(program, self.target, None)


@dataclass(frozen=True, slots=True)
class Fexit:
    """Function exit through a trampoline (Linux 5.5): arguments and result, typed."""

    target: str
    program: str
    if_exists: bool = False
    kind: str = "fentry"

    def attach(self, loader: Loader) -> Link | None:
        """See Attachment."""
        btf_id = loader.btf.function_id(self.target) if loader.btf else None
        if btf_id is None:
            if self.if_exists and loader.btf:
                return None
            raise AttachError(f"{self.target}: no such function in BTF")
        program = loader.load(self.program, programs.TRACING, programs.TRACE_FEXIT, btf_id)
        return _tracing_link(program, self.target, None)


@dataclass(frozen=True, slots=True)
class Kprobe:
    """Kprobe, or kretprobe when `at_return`, through tracefs (which alone can set maxactive)."""

    target: str
    program: str
    at_return: bool = False
    if_exists: bool = False
    kind: str = "kprobe"

    def attach(self, loader: Loader) -> Link | None:
        """See Attachment."""
        if self.if_exists and not tracefs.is_traceable(self.target):
            return None
        program = loader.load(self.program, programs.KPROBE)
        link = Link(self.target, program)
        try:
            event_id, remove = tracefs.add_kprobe(self.target, self.at_return)
            link.on_close(remove)
            fd = syscall.perf_event_open(_tracepoint_attr(event_id), cpu=0)
            link.on_close(lambda: os.close(fd))
            syscall.run_at(fd, program.fd)
        except (OSError, AttachError) as error:
            link.close()
            raise AttachError(f"{self.target}: kprobe: {_why_not_perf(error)}") from error
        return link


@dataclass(frozen=True, slots=True)
class PerfTracepoint:
    """A tracepoint by its name in tracefs, "group/event" (Linux 4.7): for those without a raw twin."""

    target: str
    program: str
    kind: str = "tracepoint"

    def attach(self, loader: Loader) -> Link | None:
        """See Attachment."""
        program = loader.load(self.program, programs.TRACEPOINT)
        link = Link(self.target, program)
        try:
            fd = syscall.perf_event_open(_tracepoint_attr(tracefs.event_id(self.target)), cpu=0)
            link.on_close(lambda: os.close(fd))
            syscall.run_at(fd, program.fd)
        except (OSError, AttachError) as error:
            link.close()
            raise AttachError(f"{self.target}: tracepoint: {_why_not_perf(error)}") from error
        return link


@dataclass(frozen=True, slots=True)
class Walk:
    """A BPF iterator (Linux 5.8), run once while attaching: `target` names what it goes through."""

    target: str
    program: str
    kind: str = "iter"

    def attach(self, loader: Loader) -> Link | None:
        """See Attachment. The program has done its work when this returns."""
        btf_id = loader.btf.function_id(f"bpf_iter_{self.target}") if loader.btf else None
        if btf_id is None:
            raise AttachError(f"{self.target}: no such iterator in BTF")
        program = loader.load(self.program, programs.TRACING, programs.TRACE_ITER, btf_id)
        link = Link(self.target, program)
        try:
            attr = struct.pack("=IIIIQII", program.fd, 0, programs.TRACE_ITER, 0, 0, 0, 0)
            opened = syscall.bpf(syscall.LINK_CREATE, attr)
            link.on_close(lambda: os.close(opened))
            walk = syscall.bpf(syscall.ITER_CREATE, struct.pack("=II", opened, 0))
            try:
                while os.read(walk, 4096):
                    pass
            finally:
                os.close(walk)
        except OSError as error:
            link.close()
            raise AttachError(f"{self.target}: iterator: {error.strerror}") from error
        return link


@dataclass(frozen=True, slots=True)
class CgroupSkb:
    """A program on all packets of all processes' sockets, in or out (Linux 5.7), beside others there.

    `target` is "ingress" or "egress". It runs once a packet, with the IP header first and `skb->sk` the
    local socket, in any process's context; it must return 1, since 0 drops the packet. Needs CAP_NET_ADMIN
    and the root of a cgroup2 hierarchy, which need not be mounted. The link ends with its descriptor, so
    nothing stays behind an agent that was killed. Packets that are only forwarded are not seen.
    """

    target: str
    program: str
    kind: str = "cgroup_skb"

    def attach(self, loader: Loader) -> Link | None:
        """See Attachment."""
        way = programs.CGROUP_WAYS[self.target]
        program = loader.load(self.program, programs.CGROUP_SKB, way)
        link = Link(self.target, program)
        try:
            root = cgroup_root.open_root(loader.proc_root)
            try:
                fd = syscall.bpf(syscall.LINK_CREATE, struct.pack("=IIII", program.fd, root, way, 0))
            finally:
                os.close(root)
            link.on_close(lambda: os.close(fd))
        except (OSError, AttachError) as error:
            link.close()
            raise AttachError(f"{self.target}: cgroup_skb: {_why_not_cgroup(error)}") from error
        return link


def _why_not_cgroup(error: OSError | AttachError) -> str:
    if isinstance(error, PermissionError):
        return "not permitted (needs CAP_NET_ADMIN)"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _why_not_perf(error: OSError | AttachError) -> str:
    """Debian's and Ubuntu's kernels ask for more than CAP_PERFMON where perf_event_paranoid is above 2."""
    if isinstance(error, PermissionError):
        return "not permitted (needs CAP_SYS_ADMIN, or kernel.perf_event_paranoid of 2 or less)"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _tracepoint_attr(event_id: int) -> bytes:
    """struct perf_event_attr for one tracepoint: type, size, config, period 1, raw samples, wakeup 1."""
    size = 112
    head = struct.pack("=IIQQQQQII", _PERF_TYPE_TRACEPOINT, size, event_id, 1, _PERF_SAMPLE_RAW, 0, 0, 1, 0)
    return head.ljust(size, b"\0")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Attachments that only make sense together, and what they measure that others do not."""

    attachments: tuple[Attachment, ...]
    measures: str = ""
    called: str = ""

    @property
    def strategy(self) -> str:
        """Kinds and targets, for reports: "tp_btf:sock_send_length + fentry:inet_sendpage"."""
        return self.called or " + ".join(f"{a.kind}:{a.target}" for a in self.attachments)


@dataclass(frozen=True, slots=True)
class Hook:
    """What a probe needs to observe, and every way it could be had, best first."""

    probe: str
    name: str
    candidates: tuple[Candidate, ...]
    essential: bool = True


def all_of(*attachments: Attachment, measures: str = "", called: str = "") -> Candidate:
    """A candidate of several attachments: all or none; `called` where there are too many to be named."""
    return Candidate(attachments, measures, called)


def first_of(probe: str, name: str, *candidates: Candidate, essential: bool = True) -> Hook:
    """A hook whose candidates are tried in the order given."""
    return Hook(probe, name, candidates, essential)


def attach(hook: Hook, loader: Loader, kinds_off: frozenset[str]) -> tuple[list[Link], HookReport]:
    """Tries the candidates until one holds. Never raises for a refused one: the report says why."""
    attempts: list[Attempt] = []
    for candidate in hook.candidates:
        off = sorted({a.kind for a in candidate.attachments} & kinds_off)
        if off:
            attempts.append(Attempt(candidate.strategy, False, f"switched off: {', '.join(off)}"))
            continue
        links: list[Link] = []
        present: list[Attachment] = []
        try:
            for attachment in candidate.attachments:  # first: what is loaded in vain takes long, too
                if isinstance(attachment, RawTracepoint | TypedTracepoint):
                    _demand_tracepoint(attachment.target, loader)
            for attachment in candidate.attachments:
                link = attachment.attach(loader)
                if link:
                    links.append(link)
                    present.append(attachment)
        except KernelError as error:
            for link in reversed(links):
                link.close()
            attempts.append(Attempt(candidate.strategy, False, str(error)))
            continue
        strategy = Candidate(tuple(present), called=candidate.called).strategy
        attempts.append(Attempt(strategy, True, "", candidate.measures))
        return links, HookReport(hook.probe, hook.name, ProbeState.ATTACHED, strategy, tuple(attempts))
    return [], HookReport(hook.probe, hook.name, ProbeState.FAILED, "", tuple(attempts))
