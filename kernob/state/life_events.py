# SPDX-License-Identifier: Apache-2.0
"""From records of single forks, execs and exits to Events: named, timed, masked, bounded in number.

In: LifeRecords with their names made fit to show, and the wall clock's offset. Out: Events. Called by
`features.lifecycle`, in the tick thread.

Deaths by a signal share the service's events of a second with nothing else; plain exit codes, which shells
and their tools return all the time, get a few a minute and service: crash loops have events of their own,
counters are complete anyway, and the store keeps what matters.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from typing import Final

from kernob.model import Attributes, Event, Severity
from kernob.state import life_sentences
from kernob.state.crash_loops import Loop
from kernob.state.destinations import OTHER
from kernob.state.endings import ending_of
from kernob.state.event_rates import EventRates
from kernob.state.last_times import LastTimes
from kernob.state.lifecycle import EXEC, EXIT, Program
from kernob.state.series import SeriesStore

EXITED, EXECUTED, FORKED = "kernob.process.exit", "kernob.process.exec", "kernob.process.fork"
CRASH_LOOP = "kernob.process.crash_loop"
_CODES_MOST, _CODES_SPAN_S = 5, 60
NEWEST_ENDS: Final = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Happening:
    """One record with names: `kind` is EXEC, FORK or EXIT, `line` the masked command line, "" for none."""

    time_unix_ns: int
    kind: int
    code: int
    forked: bool
    pid: int
    start_ticks: int
    life_s: float
    parent_pid: int
    parent: str
    program: Program
    line: str


class LifeEvents:
    """See the module. `ends` are the newest ends that were told to us, the last one last."""

    def __init__(self, store: SeriesStore, per_second: int) -> None:
        """`per_second` is the number of events a service may have in one second of event time."""
        self._rates = EventRates(per_second)
        self._codes = EventRates(_CODES_MOST, _CODES_SPAN_S)
        self._last_times = LastTimes(store)
        self.ends: deque[Happening] = deque(maxlen=NEWEST_ENDS)

    @property
    def suppressed(self) -> int:
        """Events that only summaries tell (cumulative)."""
        return self._rates.suppressed + self._codes.suppressed

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for the cap (cumulative)."""
        return self._last_times.folded

    def update(self, happenings: Iterable[Happening]) -> list[Event]:
        """Turns what happened into events, as far as the caps admit them."""
        told = []
        for each in happenings:
            event = _event(each)
            if each.kind == EXIT:
                self.ends.append(each)
            self._last_times.note(event.service, "", event.kind, event.time_unix_ns)
            rates = self._codes if each.kind == EXIT and not ending_of(each.code).signal else self._rates
            if rates.admit(event.service, event.kind, event.severity, event.time_unix_ns):
                told.append(event)
        return told

    def untold(self, count: int, now_unix_ns: int) -> None:
        """Takes how many more failures the kernel side had no budget to tell."""
        if count:
            self._rates.suppress(OTHER, EXITED, Severity.WARN, now_unix_ns, count)

    def summaries(self, now_unix_ns: int) -> list[Event]:
        """Once a tick: what was beyond the caps; brings the series of last times up to date."""
        self._last_times.flush(now_unix_ns)
        found = self._rates.summaries() + self._codes.summaries()
        for rates in (self._rates, self._codes):
            rates.forget(now_unix_ns)
        return found

    def loop(self, loop: Loop, program: Program, parent: str, unix_offset_ns: int, now_unix_ns: int) -> Event:
        """The event of a crash loop that began or ended."""
        over = bool(loop.over)
        text = (
            life_sentences.loop_ended(program.service, loop)
            if over
            else life_sentences.loop_began(program.service, loop, parent)
        )
        time_ns = now_unix_ns if over else loop.last_ns + unix_offset_ns
        self._last_times.note(program.service, "", CRASH_LOOP, time_ns)
        details: Attributes = (
            ("kernob.crash_loop.state", "end" if over else "begin"),
            ("kernob.crash_loop.restarts", loop.restarts),
            ("kernob.crash_loop.reasons", life_sentences.reasons(loop)),
            ("kernob.crash_loop.life", round(loop.life_s, 6)),
        )
        return Event(
            time_ns,
            CRASH_LOOP,
            Severity.INFO if over else Severity.ERROR,
            program.service,
            text,
            executable=program.executable,
            pid=loop.row.pid,
            reason="" if over else life_sentences.reasons(loop).partition(" (")[0],
            count=loop.failures,
            first_unix_ns=loop.began_ns + unix_offset_ns if over else 0,
            details=details,
        )


def _event(what: Happening) -> Event:
    program, ending = what.program, ending_of(what.code)
    name = life_sentences.who(program.service, program.executable, what.pid)
    details: list[tuple[str, str | int | float | bool]] = [("process.parent_pid", what.parent_pid)]
    if what.line:
        details.append(("process.command_line", what.line))
    severity, reason = Severity.INFO, ""
    if what.kind == EXEC:
        kind, body = EXECUTED, life_sentences.started(name, what.parent, what.parent_pid, what.line)
    elif what.kind == EXIT:
        kind, body = EXITED, life_sentences.ended(name, ending, what.life_s, what.line)
        if ending.signal:
            details += [("kernob.exit.signal", ending.signal), ("kernob.exit.core_dumped", ending.core)]
            reason = "out_of_memory" if ending.out_of_memory else ending.signal
        else:
            details.append(("process.exit.code", ending.code))
            reason = f"exit code {ending.code}" if ending.failed else ""
        if what.life_s >= 0:
            details.append(("kernob.process.lifetime", round(what.life_s, 6)))
        severity = Severity.ERROR if ending.failed and ending.signal else Severity.INFO
        severity = Severity.WARN if ending.failed and not ending.signal else severity
    else:
        kind, body = FORKED, life_sentences.forked(name, what.parent_pid)
    return Event(
        what.time_unix_ns,
        kind,
        severity,
        program.service,
        body,
        executable=program.executable,
        pid=what.pid,
        start_ticks=what.start_ticks,
        reason=reason,
        age_s=what.life_s,
        details=tuple(details),
    )
