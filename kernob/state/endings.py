# SPDX-License-Identifier: Apache-2.0
"""How a process ended, out of the code that its parent is told (wait(2))."""

from __future__ import annotations

import functools
import signal
from dataclasses import dataclass

OOM = 1 << 16
_ASKED = frozenset((signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM))


@dataclass(frozen=True, slots=True)
class Ending:
    """`code` is the exit code, 0 where `signal` ("SIGSEGV", "" for none) killed it.

    `failed`: as systemd has it, neither exit code 0 nor one of the signals that ask to end; programs that
    end by themselves for such a signal say 128 + its number.
    """

    code: int
    signal: str
    core: bool
    out_of_memory: bool
    failed: bool


@functools.lru_cache(1024)
def ending_of(code: int) -> Ending:
    """Reads a code of the kernel side: a wait status, and OOM.

    >>> ending_of(11 | 0x80).signal, ending_of(3 << 8).code, ending_of(9 | OOM).out_of_memory
    ('SIGSEGV', 3, True)
    """
    number, value = code & 0x7F, code >> 8 & 0xFF
    asked = number or (value - 128 if value > 128 else 0)
    failed = bool(code & 0xFFFF) and asked not in _ASKED
    return Ending(
        0 if number else value, signal_name(number), bool(number and code & 0x80), bool(code & OOM), failed
    )


def signal_name(number: int) -> str:
    """Its name; "" for 0."""
    if not number:
        return ""
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"SIG{number}"


def said(ending: Ending) -> str:
    """In words, without a subject: "exit code 3", "SIGSEGV, core dumped", "out of memory (SIGKILL)"."""
    if ending.out_of_memory:
        return "killed for memory that ran out"
    if ending.signal:
        return f"{ending.signal}, core dumped" if ending.core else ending.signal
    return f"exit code {ending.code}"
