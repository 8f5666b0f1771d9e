# SPDX-License-Identifier: Apache-2.0
"""Which system calls there are, and what KERNOB_SYSCALLS takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernob.config import load_settings
from kernob.config_values import SyscallNames
from kernob.errors import ConfigError
from kernob.probes import syscalls
from kernob.syscall_table import NUMBERS_END, expand, names, numbers

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_table_agrees_with_the_kernels_headers(machine: str) -> None:
    """Whatever this system's headers know has the same number in the table."""
    if not HEADERS[machine].exists():
        pytest.skip("missing feature: linux-libc-dev")
    text = HEADERS[machine].read_text(encoding="ascii", errors="replace")
    found = {
        name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE)
    }
    found = {"newfstatat" if name == "fstatat" else name: n for name, n in found.items()}
    for name in ("syscalls", "arch_specific_syscall", "sync_file_range2"):
        found.pop(name, None)
    assert len(found) > 300
    known = numbers(machine)
    assert {name: known.get(name) for name in found} == found
    assert max(known.values()) < NUMBERS_END
    assert len(names(machine)) == len(known)


def test_numbers_differ_by_architecture() -> None:
    """read is 0 here and 63 there; what is not known is empty."""
    assert (numbers("x86_64")["read"], numbers("aarch64")["read"]) == (0, 63)
    assert (numbers("x86_64")["futex"], numbers("aarch64")["futex"]) == (202, 98)
    assert numbers("x86_64")["epoll_pwait2"] == numbers("aarch64")["epoll_pwait2"] == 441
    assert not numbers("riscv64")


def test_epoll_wait_stands_for_whatever_programs_call() -> None:
    """The C library's epoll_wait() is another call on aarch64, and runtimes call epoll_pwait everywhere."""
    assert expand("epoll_wait", "x86_64") == ("epoll_wait", "epoll_pwait", "epoll_pwait2")
    assert expand("epoll_wait", "aarch64") == ("epoll_pwait", "epoll_pwait2")
    assert expand("epoll_pwait", "x86_64") == ("epoll_pwait",)
    assert expand("nonsense", "x86_64") == ()


def test_names_are_taken_once_and_none_means_none() -> None:
    """A comma-separated list or an array; "none" switches off."""
    kind = SyscallNames("x86_64")
    assert kind.parse("read, futex,read") == ("read", "futex")
    assert kind.parse(["epoll_wait", "fsync"]) == ("epoll_wait", "epoll_pwait", "epoll_pwait2", "fsync")
    assert kind.parse("none") == ()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("raed", "has no call raed; did you mean read?"),
        ("read,epol_wait", "has no call epol_wait; did you mean epoll_wait?"),
        ("exit_group", "a list of system calls that return; exit_group does not"),
        ("read,none", "has no call none"),
        ("", "a comma-separated list of system calls, or none"),
        ("READ;rm", "a comma-separated list of system calls, or none"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_right_one(raw: str, words: str) -> None:
    """One line: the variable, its value, what would be valid."""
    with pytest.raises(ConfigError) as refused:
        load_settings({"KERNOB_SYSCALLS": raw})
    message = str(refused.value)
    assert message.startswith("KERNOB_SYSCALLS is ")
    assert words in message
    assert "\n" not in message


def test_few_calls_have_tracepoints_of_their_own_and_many_share_one() -> None:
    """What is tried first depends on how many there are; the other way stays as a fallback."""
    few, many = (
        [c.attachments[0].kind for c in hook.candidates]
        for probe in (syscalls.watching(("read",)), syscalls.watching(list(numbers())[: syscalls.FEW + 1]))
        for hook in probe.hooks
        if hook.name == "calls"
    )
    assert few == ["tracepoint", "tp_btf", "raw_tp"]
    assert many == ["tp_btf", "raw_tp", "tracepoint"]
