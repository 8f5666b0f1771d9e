# SPDX-License-Identifier: Apache-2.0
"""Probe `waits`: waits that ran their full timeout while a connection's answer was due.

Hooks: see bpf/waits.bpf.c. They only mark sockets (struct sock_val.silent_waits): what it means is told by
the fates that `probes.tcp` reads. Without a hook such waits are not seen, and responsiveness is less than it
should be: that of SO_RCVTIMEO stays.
"""

from __future__ import annotations

from kernob.kernel.attach import Candidate, Hook, PerfTracepoint, all_of, first_of
from kernob.probes.probe import Probe


def _exits(program: str, *calls: str) -> Candidate:
    return all_of(*(PerfTracepoint(f"syscalls/sys_exit_{call}", f"tp__{program}_exit") for call in calls))


def _timed(program: str, *calls: str) -> Candidate:
    """Exits first: what begins is then also taken away."""
    exits = [PerfTracepoint(f"syscalls/sys_exit_{call}", f"tp__{program}_exit") for call in calls]
    enters = [PerfTracepoint(f"syscalls/sys_enter_{call}", f"tp__{program}_enter") for call in calls]
    return all_of(*exits, *enters)


def _hook(name: str, *candidates: Candidate) -> Hook:
    return first_of("waits", name, *candidates, essential=False)


PROBE = Probe(
    name="waits",
    sources=("waits.bpf.c",),
    hooks=(
        # architectures younger than epoll_pwait have no epoll_wait, likewise select and poll
        _hook("epoll", _exits("epoll", "epoll_wait", "epoll_pwait"), _exits("epoll", "epoll_pwait")),
        _hook("epoll_pwait2", _exits("epoll_pwait2", "epoll_pwait2")),
        _hook("poll", _exits("poll", "poll")),
        _hook("ppoll", _timed("ppoll", "ppoll")),
        _hook("select", _timed("select", "select", "pselect6"), _timed("select", "pselect6")),
    ),
    blind_spots=(
        "a wait on more than 96 descriptors: those beyond are not looked at",
        "timeouts that a program keeps by io_uring, or epoll within epoll",
    ),
)
