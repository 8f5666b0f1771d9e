# SPDX-License-Identifier: Apache-2.0
"""What became of a process, as one sentence that can be read aloud at two in the morning.

In: who, and how it ended. Out: bodies of events. Called by `state.life_events`. See `state.sentences`.
"""

from __future__ import annotations

from kernob.state.crash_loops import Loop
from kernob.state.endings import Ending, ending_of, said
from kernob.state.sentences import span


def who(service: str, executable: str, pid: int) -> str:
    """A process with its name: "worker.py (python3.11, PID 4711)"."""
    return f"{service} (PID {pid})" if executable in ("", service) else f"{service} ({executable}, PID {pid})"


def length(seconds: float) -> str:
    """How long it lived: to a millisecond below ten of them.

    >>> length(0.0048), length(0.4), length(75)
    ('4.8 ms', '0.4 s', '1 min 15 s')
    """
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s" if 0.0995 < seconds < 1 else span(seconds)


def ended(name: str, ending: Ending, life_s: float, line: str) -> str:
    """The end of a process; `life_s` below 0: it is older than the agent."""
    after = f" after {length(life_s)}" if life_s >= 0 else ""
    tail = f": {line}" if line else ""
    if ending.out_of_memory:
        return f"{name} was killed because memory ran out{after}{tail}"
    if ending.signal:
        core = ", core dumped" if ending.core else ""
        return f"{name} was killed by {ending.signal}{after}{core}{tail}"
    return f"{name} ended with exit code {ending.code}{after}{tail}"


def started(name: str, parent: str, parent_pid: int, line: str) -> str:
    """An exec."""
    by = f" by {parent} (PID {parent_pid})" if parent else ""
    return f"{name} was started{by}: {line}" if line else f"{name} was started{by}"


def forked(name: str, parent_pid: int) -> str:
    """A fork."""
    return f"{name} was forked by PID {parent_pid}"


def reasons(loop: Loop) -> str:
    """How its lives ended: "exit code 139 (14 times), SIGKILL (once)"."""
    return ", ".join(f"{said(ending_of(code))} ({times(count)})" for code, count in loop.codes.items())


def times(count: int) -> str:
    """How often.

    >>> times(1), times(2), times(1400)
    ('once', 'twice', '1,400 times')
    """
    return {1: "once", 2: "twice"}.get(count) or f"{count:,} times"


def loop_began(service: str, loop: Loop, parent: str) -> str:
    """A crash loop that has just been noticed."""
    by = f", started again by {parent}" if parent else ""
    count = f"{loop.restarts:,} restart{'s' if loop.restarts != 1 else ''}"
    return (
        f"{service} is in a crash loop: {count} so far, lives of {length(loop.life_s)}, {reasons(loop)}{by}"
    )


def loop_ended(service: str, loop: Loop) -> str:
    """A crash loop that is over."""
    took = length((loop.last_ns - loop.began_ns) / 1e9) if loop.last_ns > loop.began_ns else ""
    lasted = f" of {took}" if took else ""
    count = f"{loop.restarts:,} restart{'s' if loop.restarts != 1 else ''}"
    return f"{service}: the crash loop{lasted} is over, {loop.over}: {count}, {reasons(loop)}"
