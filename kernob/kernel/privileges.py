# SPDX-License-Identifier: Apache-2.0
"""Giving up capabilities that only attaching needs (capabilities(7)).

In: a trial that shows whether reading still works without them. Out: a process whose every thread holds
the few that reading needs, for good. Called by `pipeline` for `agent`.

The kernel keeps capabilities by thread, and a new thread gets those of the one that starts it. So what
starts threads before the programs are attached runs `confined`; the thread that attaches lets go
afterwards, by `drop`, before it starts any other; and `drop` looks whether a thread was forgotten.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kernob.kernel.capabilities import CAPABILITIES

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_NUMBERS = {name: number for number, name in CAPABILITIES.items()}
KEPT = ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE")
"""For other users' /proc/PID (exe, ns, root), and for keys and certificates that are theirs to read."""

_FOR_MAPS = ("CAP_BPF",)
"""Before Linux 5.19 even a map that is open is closed to others, where unprivileged_bpf_disabled is set."""
_FOR_UPROBES = ("CAP_SYS_ADMIN",)
"""The PMU of uprobes asks for it (Linux 4.17 to now); BPF's own link (6.6) does not."""

_FOR_MAPS_BEFORE_5_8 = ("CAP_SYS_ADMIN",)

_CAPSET_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_SETPCAP = 8
_libc = ctypes.CDLL(None, use_errno=True)


def drop(trial: Callable[[], object], for_uprobes: bool = False) -> tuple[str, ...]:
    """Gives up, in this thread, for good, all but `KEPT`; returns the names of those that are left.

    `trial` is called in a thread without the others first: where it raises PermissionError, or anything
    caused by it, the capability that reads maps stays as well; with `for_uprobes`, the one that puts probes
    on libraries that appear later. Raises OSError where the kernel refuses.
    """
    keep: tuple[str, ...] = KEPT
    if for_uprobes:
        keep += _FOR_UPROBES
    if not confined(lambda: _is_permitted(trial), keep):
        keep += _FOR_MAPS if _highest() >= _NUMBERS["CAP_BPF"] else _FOR_MAPS_BEFORE_5_8
    _reduce(_bits(keep))
    forgotten = threads_beyond(_bits(keep))
    if forgotten:
        log.warning("capabilities stay with %s", ", ".join(forgotten))
    held = _status("thread-self", "CapPrm")
    return tuple(name for number, name in CAPABILITIES.items() if held >> number & 1)


def confined(work: Callable[[], Result], keep: tuple[str, ...] = KEPT) -> Result:
    """What `work` returns or raises, called in a thread that holds no capability but those of `keep`.

    Threads it starts hold no others either.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _reduce(_bits(keep))
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="confined", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def threads_beyond(allowed: int) -> tuple[str, ...]:
    """Names of this process's threads that hold more than the capabilities `allowed` (a bit each)."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            if _status(f"self/task/{task.name}", "CapPrm") & ~allowed:
                found.append(f"{task.joinpath('comm').read_text(errors='replace').strip()} ({task.name})")
        except OSError:  # it ended
            continue
    return tuple(found)


def _is_permitted(trial: Callable[[], object]) -> bool:
    try:
        trial()
    except Exception as error:
        if isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError):
            return False
        raise
    return True


def _reduce(keep: int) -> None:
    """Takes from this thread what it holds beyond `keep`, and every way to get it back by execve."""
    held = _status("thread-self", "CapPrm")
    if _status("thread-self", "CapEff") >> _SETPCAP & 1:
        for number in range(_highest() + 1):
            if not keep >> number & 1:
                _call(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
    _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    left = held & keep
    header = (ctypes.c_uint32 * 2)(_CAPSET_VERSION, 0)
    low, high = left & 0xFFFFFFFF, left >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted, inheritable
    _call(_libc.capset(header, data))


def _call(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"giving up capabilities: {os.strerror(number)}")


def _status(who: str, field: str) -> int:
    for line in Path(f"/proc/{who}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1], 16)
    return 0


def _highest() -> int:
    """The last capability this kernel knows."""
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))


def _bits(names: tuple[str, ...]) -> int:
    return sum(1 << _NUMBERS[name] for name in names)
