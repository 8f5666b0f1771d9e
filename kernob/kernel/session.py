# SPDX-License-Identifier: Apache-2.0
"""One load of Kernob's programs into the kernel: compile, create maps, attach hooks, take it all back.

In: which C files and hooks (from `probes`), KernelOptions. Out: attached programs, readable maps,
HookReports. Called by `agent` and `doctor`. Use as a context manager: nothing stays attached after it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernob.errors import BtfError, CompileError, KernelError, PreconditionError
from kernob.kernel import attach, compiler, headers, offsets, ringbuf, syscall, tracefs
from kernob.kernel.attach import Hook, Link, Loader
from kernob.kernel.btf import VMLINUX, Btf
from kernob.kernel.maps import ARRAY_OF_MAPS, BpfMap, SwappedMap
from kernob.kernel.programs import Program, RunStats
from kernob.model import Attempt, HookReport, MapUsage, ProbeState

log = logging.getLogger(__name__)

_COMMON_SOURCES = (
    "types.h",
    "common.h",
    "facts.h",
    "socket.h",
    "names.h",
    "connection.h",
    "http.h",
    "exchange.h",
    "endings.h",
    "state.h",
    "lives.h",
)
_HTTP_USER = "tcp.bpf.c"
_STATS_RUN_TIME = 0
_IDLE_SUFFIX = "_idle"
_CLOCK_MONOTONIC_COARSE = 6  # its resolution is one tick of the kernel's timer
_M_ARENA_MAX = -8  # malloc.h
_FILES_MOST = 65_536


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What a user may choose about the kernel side.

    `capacities`: map name -> entries. `kinds_off`: strategies not to try, out of tp_btf, raw_tp,
    fentry, kprobe, tracepoint, iter, cgroup_skb, and btf (read offsets from kernel headers). `cache_dir`
    None: compile each time. `proc_root`: the host's /proc. `http`: read the heads of HTTP/1 responses.
    """

    capacities: Mapping[str, int] = field(default_factory=dict)
    kinds_off: frozenset[str] = frozenset()
    btf_path: Path | None = None
    cache_dir: Path | None = None
    bpf_stats: bool = False
    proc_root: Path = Path("/proc")
    http: bool = True


class Session:
    """See the module. Attributes: `reports`, one HookReport per hook in order, then HTTP's."""

    def __init__(
        self,
        sources: Sequence[str],
        hooks: Sequence[Hook],
        options: KernelOptions,
        prepare: Callable[[Session], None] | None = None,
    ) -> None:
        """`prepare` is called when the maps are there and nothing is attached yet."""
        self._sources = (*_COMMON_SOURCES, *sources)
        self._hooks = tuple(hooks)
        self._options = options
        self._maps: dict[str, BpfMap] = {}
        self._swapped: dict[str, SwappedMap] = {}
        self._links: list[tuple[Hook, Link]] = []
        self._stats_fd = -1
        self._prepare = prepare
        self.reports: tuple[HookReport, ...] = ()
        self.type_source = ""

    def __enter__(self) -> Session:
        """Compiles, creates maps, attaches. Raises PreconditionError or KernelError, nothing left behind."""
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        check_permission()
        tracefs.remove_leftovers()
        lift_file_limit()
        btf, macros = self._types()
        macros = {**macros, "JIFFY_NS": round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)}
        if not ringbuf.missing():  # BCC creates the maps while it compiles, and fails with them
            macros = {**macros, "HAVE_RINGBUF": 1}
        if btf and btf.enum_value("bpf_func_id", "BPF_FUNC_get_current_task_btf") is not None:
            macros = {**macros, "HAVE_TYPED_TASK": 1}
        refusal = self._why_not_http(btf)
        if not refusal and not self._attach({**macros, "HTTP_EVIDENCE": 1}, btf):
            self.close()
            refusal = "hooks that cannot be done without would not attach with it"
        if refusal:
            self._attach(macros, btf)
        if _HTTP_USER in self._sources:
            self.reports += (_http_report(refusal),)

    def _attach(self, macros: Mapping[str, int], btf: Btf | None) -> bool:
        """Compiles, creates maps, attaches what can be; whether that is all that is essential.

        With HTTP_EVIDENCE a text that does not compile is one that does not attach.
        """
        try:
            compiled = compiler.compile_sources(
                self._sources, self._functions(), macros, self._options.cache_dir
            )
        except CompileError as error:
            if "HTTP_EVIDENCE" not in macros:
                raise
            log.warning("without HTTP: %s", error)
            return False
        self._create_maps(compiled)
        if self._prepare:
            self._prepare(self)
        if self._options.bpf_stats:
            self._enable_stats()
        loader = Loader(compiled, self._by_name(), btf, self._options.proc_root)
        reports = []
        for hook in self._hooks:
            links, report = attach.attach(hook, loader, self._options.kinds_off)
            self._links += [(hook, link) for link in links]
            reports.append(report)
        self.reports = tuple(reports)
        return all(
            report.state is ProbeState.ATTACHED
            for hook, report in zip(self._hooks, reports, strict=True)
            if hook.essential
        )

    def _why_not_http(self, btf: Btf | None) -> str:
        """Why programs may not look at what a call has sent or received, "" where they may."""
        if not self._options.http or _HTTP_USER not in self._sources:
            return "switched off: KERNOB_HTTP"
        if btf is None:
            return "needs BTF"
        if btf.enum_value("bpf_func_id", "BPF_FUNC_task_pt_regs") is None:
            return "this kernel has no bpf_task_pt_regs (Linux 5.15)"
        return ""

    def _enable_stats(self) -> None:
        """Lets the kernel time programs while we run; without that everything else goes on."""
        try:
            self._stats_fd = syscall.bpf(syscall.ENABLE_STATS, struct.pack("=I", _STATS_RUN_TIME))
        except OSError as error:
            log.warning("KERNOB_BPF_STATS: programs are not timed: %s (needs CAP_SYS_ADMIN)", error.strerror)

    def _types(self) -> tuple[Btf | None, dict[str, int]]:
        """The kernel's types: BTF, or offsets out of real headers where there is none."""
        reason = "switched off"
        if "btf" not in self._options.kinds_off:
            try:
                btf = Btf.load(self._options.btf_path or VMLINUX)
                self.type_source = str(self._options.btf_path or VMLINUX)
                return btf, offsets.from_btf(btf)
            except BtfError as error:
                if self._options.btf_path:
                    raise
                reason = str(error)
        macros, self.type_source = headers.offsets_from_headers(reason, self._options.cache_dir)
        return None, macros

    def _functions(self) -> tuple[str, ...]:
        names = {a.program for hook in self._hooks for c in hook.candidates for a in c.attachments}
        return tuple(sorted(names))

    def _create_maps(self, compiled: compiler.CompiledObject) -> None:
        _lift_memory_lock_limit()
        capacities = self._options.capacities
        outers = {name for name, spec in compiled.maps.items() if spec.type == ARRAY_OF_MAPS}
        for name in outers:
            inner = compiled.maps[name + _IDLE_SUFFIX]
            self._swapped[name] = SwappedMap(compiled.maps[name], inner, capacities.get(name))
        for name, spec in compiled.maps.items():
            if name not in outers and name.removesuffix(_IDLE_SUFFIX) not in outers:
                self._maps[name] = BpfMap(spec, capacities.get(name))

    def _by_name(self) -> dict[str, BpfMap]:
        return {**self._maps, **{name: pair.outer for name, pair in self._swapped.items()}}

    def map(self, name: str) -> BpfMap:
        """A map by its name in C; KeyError for one that does not exist."""
        return self._maps[name]

    def program(self, name: str) -> Program | None:
        """A loaded program by its name in C, for a hook whose places come later (uprobes)."""
        return next((link.program for _hook, link in self._links if link.program.name == name), None)

    def strategy(self, probe: str, hook: str) -> str:
        """How a hook was attached, "" where it is not."""
        return next((r.strategy for r in self.reports if (r.probe, r.hook) == (probe, hook)), "")

    def swapped(self, name: str) -> SwappedMap:
        """An array of maps by its name in C; KeyError for one that does not exist."""
        return self._swapped[name]

    def require_essential(self) -> None:
        """Raises KernelError naming the first essential hook that no strategy could attach."""
        for hook, report in zip(self._hooks, self.reports, strict=False):
            if hook.essential and report.state is not ProbeState.ATTACHED:
                found = dict.fromkeys(a.reason.split(" | ")[0][:160] for a in report.attempts)
                # what the operator chose to leave out comes last: it is seldom what is looked for
                reasons = sorted(found, key=lambda reason: reason.startswith("switched off"))
                raise KernelError(
                    f"hook {report.probe}.{report.hook}: none of {len(report.attempts)} strategies attached "
                    f"({'; '.join(reasons[:3])}); kernob doctor tells all"
                )

    def detach(self) -> None:
        """Takes the programs away in reverse order; maps stay readable, for the last reading."""
        for _hook, link in reversed(self._links):
            link.close()
        self._links.clear()

    def close(self) -> None:
        """Detaches and frees everything; safe to call twice."""
        self.detach()
        for each in self._maps.values():
            each.close()
        for pair in self._swapped.values():
            pair.close()
        self._maps.clear()
        self._swapped.clear()
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1
        tracefs.release()

    @property
    def links(self) -> tuple[Link, ...]:
        """What is attached, in order."""
        return tuple(link for _hook, link in self._links)

    def run_stats(self) -> dict[tuple[str, str], RunStats]:
        """(probe, program) -> the kernel's own count of runs; run time only with bpf_stats."""
        totals: dict[tuple[str, str], RunStats] = {}
        for hook, link in self._links:
            new, key = link.program.stats(), (hook.probe, link.program.name)
            old = totals.get(key, RunStats(0, 0, 0))
            totals[key] = RunStats(
                old.run_time_ns + new.run_time_ns,
                old.runs + new.runs,
                old.recursion_misses + new.recursion_misses,
            )
        return totals

    def usage(self, entries: Mapping[str, int]) -> tuple[MapUsage, ...]:
        """Fill and memory of the maps named in `entries` (counts the caller has from reading them)."""
        found = []
        for name, count in entries.items():
            if name in self._swapped:
                pair = self._swapped[name]
                found.append(MapUsage(name, count, pair.inner.max_entries, pair.memory_bytes()))
            else:
                each = self._maps[name]
                found.append(MapUsage(name, count, each.max_entries, each.memory_bytes()))
        return tuple(found)

    def memory_bytes(self) -> int:
        """Memory of all maps, as the kernel accounts it."""
        singles = sum(each.memory_bytes() for each in self._maps.values())
        return singles + sum(pair.memory_bytes() for pair in self._swapped.values())

    def losses(self) -> NDArray[Any]:
        """The losses array (enum loss), cumulative since the maps were created."""
        _keys, values = self._maps["losses"].read()
        return np.asarray(values)


def _http_report(refusal: str) -> HookReport:
    """Looking at HTTP is a part of two hooks; to whoever asks it is one more that may fail."""
    strategy = "helper:task_pt_regs"
    attempt = Attempt(strategy, not refusal, refusal)
    state = ProbeState.FAILED if refusal else ProbeState.ATTACHED
    return HookReport("tcp", "http", state, "" if refusal else strategy, (attempt,))


def check_permission() -> None:
    """Raises PreconditionError, one line, where bpf(2) cannot work at all."""
    probe = struct.pack("=IIIII", 2, 4, 8, 1, 0)
    try:
        os.close(syscall.bpf(syscall.MAP_CREATE, probe))
    except OSError as error:
        if error.errno == 38:
            raise PreconditionError("this kernel has no bpf system call (CONFIG_BPF_SYSCALL)") from error
        if os.geteuid() != 0:
            raise PreconditionError(
                "Kernob needs root: run it with sudo, or in a privileged container"
            ) from error
        raise PreconditionError(
            f"bpf is not permitted ({error.strerror}): give the container CAP_BPF, CAP_PERFMON and "
            "CAP_SYS_PTRACE, or run it privileged"
        ) from error


def _lift_memory_lock_limit() -> None:
    """Maps count against RLIMIT_MEMLOCK before Linux 5.11."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError) as error:
        log.debug("RLIMIT_MEMLOCK stays as it is: %s", error)


def lift_file_limit() -> int:
    """Lets this process have as many descriptors open as it may; returns how many.

    Services start with 1,024, for the sake of select(2), which nothing here uses. Each C library that is
    probed takes ten.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MOST if hard == resource.RLIM_INFINITY else min(hard, _FILES_MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _FILES_MOST if soft == resource.RLIM_INFINITY else soft


def spare_memory() -> None:
    """One arena for all threads, before they start: they wait far more than they allocate (glibc only)."""
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options:
        options(_M_ARENA_MAX, 1)


def settle_memory() -> None:
    """Gives memory that starting took back to the system (glibc only; harmless elsewhere)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
