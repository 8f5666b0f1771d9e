# SPDX-License-Identifier: Apache-2.0
"""What `kernob lifecycle` is answered: totals, programs, crash loops, newest ends, as one JSON document.

In: state. Out: plain dictionaries; docs/lifecycle.md lists the fields. Called by `features.lifecycle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernob.state.crash_loops import Loop
from kernob.state.crash_policy import Parent
from kernob.state.endings import ending_of, said
from kernob.state.life_events import Happening
from kernob.state.lifecycle import Program, ProgramTurns

_REASONS_MOST = 8


def document(
    totals: Mapping[str, int],
    programs: Sequence[ProgramTurns],
    loops: Iterable[tuple[Program, Parent | None, Loop]],
    ends: Sequence[Happening],
    limit: int,
    unix_offset_ns: int,
) -> dict[str, Any]:
    """The answer; `limit` is the most programs and ends it has."""
    return {
        "totals": dict(totals),
        "programs_known": len(programs),
        "programs": [_program(each) for each in programs[:limit]],
        "crash_loops": [_loop(*each, unix_offset_ns) for each in loops],
        "ends": [_end(each) for each in ends[:limit]],
    }


def _program(turns: ProgramTurns) -> dict[str, Any]:
    return {
        "service": turns.program.service,
        "executable": turns.program.executable,
        "starts": turns.starts,
        "exits": turns.exits,
        "failures": sum(n for code, n in turns.codes.items() if ending_of(code).failed),
        "reasons": _reasons(turns.codes),
    }


def _reasons(codes: Mapping[int, int]) -> list[dict[str, Any]]:
    most = sorted(codes.items(), key=lambda each: -each[1])[:_REASONS_MOST]
    return [
        {"code": ending_of(c).code, "signal": ending_of(c).signal, "said": said(ending_of(c)), "count": n}
        for c, n in most
    ]


def _loop(program: Program, parent: Parent | None, loop: Loop, offset_ns: int) -> dict[str, Any]:
    return {
        "service": program.service,
        "executable": program.executable,
        "restarts": loop.restarts,
        "restarts_in_window": loop.recent,
        "failures": loop.failures,
        "life_s": loop.life_s,
        "began_unix_ns": loop.began_ns + offset_ns,
        "last_unix_ns": loop.last_ns + offset_ns,
        "parent": parent.name if parent else "",
        "parent_pid": parent.pid if parent else 0,
        "reasons": _reasons(loop.codes),
    }


def _end(end: Happening) -> dict[str, Any]:
    ending = ending_of(end.code)
    return {
        "time_unix_ns": end.time_unix_ns,
        "service": end.program.service,
        "executable": end.program.executable,
        "pid": end.pid,
        "parent_pid": end.parent_pid,
        "code": ending.code,
        "signal": ending.signal,
        "core_dumped": ending.core,
        "out_of_memory": ending.out_of_memory,
        "said": said(ending),
        "life_s": end.life_s,
        "command_line": end.line,
    }
