# SPDX-License-Identifier: Apache-2.0
"""Who came and went: starts and exits into their series, ends into events, failures into crash loops."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from kernob.config import Settings
from kernob.features.feature import Feature, Report, Tick
from kernob.kernel.procfs import ProcFs
from kernob.kernel.ringbuf import RingBuffer, RingReader, unix_offset_ns
from kernob.model import Event, ProcessInfo
from kernob.probes import lifecycle
from kernob.probes.lifecycle import LifeRecord, LifeRows, Option, Total, Turn
from kernob.probes.traffic import Loss
from kernob.state.crash_gauge import CrashGauge
from kernob.state.crash_loops import CrashLoops, CrashRow
from kernob.state.crash_policy import ANSWERS, SHELLS, Parent, can_crash
from kernob.state.endings import ending_of
from kernob.state.interpreters import HEADS, program_name
from kernob.state.life_events import Happening, LifeEvents
from kernob.state.life_report import document
from kernob.state.lifecycle import NOBODYS, LifecycleState, Program, Programs
from kernob.state.masks import Masker
from kernob.state.series import SeriesStore
from kernob.state.text import sanitize, split_args

if TYPE_CHECKING:
    from kernob.kernel.session import Session

_SETTLED_NS: Final = 1_000_000_000
_OPTIONS = {"exits": Option.EXIT_EVENTS, "execs": Option.EXEC_EVENTS, "forks": Option.FORK_EVENTS}
Name = Callable[[ProcessInfo, "bytes | None"], ProcessInfo]
"""Gives a program its service: (what was captured, its raw command line; None: all is clean already)."""


def prepare(session: Session, settings: Settings) -> None:
    """Tells the programs what they must know, before they are attached."""
    lifecycle.set_scripted(session, HEADS)
    lifecycle.ask_for(session, (o for name, o in _OPTIONS.items() if name in settings.lifecycle_events))


class Lifecycle(Feature):
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        store: SeriesStore,
        proc: ProcFs,
        name: Name,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called, from a thread too, when `events` has some to give."""
        self._on = settings.lifecycle
        self._failures = "failures" in settings.lifecycle_events
        self._exits = "exits" in settings.lifecycle_events
        self._proc = proc
        self._name = name
        self._wake = wake
        self._session: Session | None = None
        self._programs = Programs(self._find)
        specs = (lifecycle.STARTS, lifecycle.EXITS, lifecycle.OOM_KILLS)
        self._state = LifecycleState(store, specs, settings.max_lifecycle_series, self._programs)
        self._told = LifeEvents(store, settings.max_events_per_second)
        self._window_ns = round(settings.crash_loop_window_s * 1e9)
        self._loops = CrashLoops(settings.crash_loop_restarts, self._window_ns, self._can_crash)
        self._gauge = CrashGauge(store.block(lifecycle.CRASH_LOOP))
        self._masker = Masker(settings.command_line_masks, masked=settings.command_lines == "mask")
        self._with_lines = settings.command_lines != "off"
        self._ring: RingBuffer | None = None
        self._reader: RingReader | None = None
        self._settled: dict[int, int] = {}
        self._news: list[Event] = []
        self._untold = 0
        self._unread = 0
        self._totals: tuple[int, ...] = (0, 0, 0)
        self._usage: dict[str, int] = {}

    def open(self, session: Session) -> None:
        """Takes note of who is there already; maps the ring. Raises MapError."""
        if not self._on:
            return
        self._session = session
        self._meet(session)
        try:
            ring = session.map("life_events")
        except KeyError:
            return
        self._ring = RingBuffer(ring.fd, ring.max_entries)
        self._reader = RingReader(self._ring, self._wake)

    def _meet(self, session: Session) -> None:
        """Names processes that are older than the programs: by even numbers; the kernel side's are odd."""
        numbers: dict[Program, int] = {}
        for pid in self._proc.pids():
            info = self._proc.read_process(pid)
            if info is None or not info.executable:
                continue
            program = _program(self._name(info, None))
            number = numbers.setdefault(program, 2 * len(numbers) + 2)
            self._programs.add(number, program)
            lifecycle.seed(session, pid, number)

    def watch(self) -> None:
        """Begins to read the ring."""
        if self._reader:
            self._reader.start()

    def detached(self) -> None:
        """Ends the reading thread; what is in the ring then is what the last `events` gets."""
        if self._reader:
            self._reader.stop()

    def close(self) -> None:
        """Lets go of the ring."""
        self.detached()
        self._reader = None
        if self._ring:
            self._ring.close()
            self._ring = None

    def events(self) -> list[Event]:
        """What was told since the last call, and crash loops that the last tick found."""
        found, self._news = self._news, []
        if not self._reader or not self._session:
            return found
        for batch in self._reader.take():
            records = lifecycle.records(self._session, batch.raw)
            self._unread += len(batch.raw) - len(records)
            happenings = (self._happening(record, batch.unix_offset_ns) for record in records)
            found += self._told.update(each for each in happenings if self._is_told(each))
        return found

    def summaries(self, now_unix_ns: int) -> list[Event]:
        """What was beyond the caps, and beyond the kernel side's budget."""
        return self._told.summaries(now_unix_ns)

    @property
    def suppressed(self) -> int:
        """Events beyond the caps."""
        return self._told.suppressed

    @property
    def folded(self) -> int:
        """Of its series."""
        return self._state.folded + self._told.folded

    def losses(self, counts: NDArray[Any]) -> dict[str, int]:
        """What its maps had no room for; ends that the budget left untold go into the next summary."""
        if not self._on:
            return {}
        untold = int(counts[Loss.ENDS_UNTOLD])
        if self._failures:
            self._told.untold(untold - self._untold, time.time_ns())
        self._untold = untold
        return {
            "lives_full": int(counts[Loss.LIVES_FULL]),
            "programs_full": int(counts[Loss.IMAGES_FULL]),
            "turns_full": int(counts[Loss.TURNS_FULL]),
            "life_ring_full": int(counts[Loss.LIFE_EVENTS_FULL]),
        }

    def usage(self) -> dict[str, int]:
        """Entries of its maps."""
        return self._usage

    def reports(self) -> dict[str, Report]:
        """`lifecycle`: what `kernob lifecycle` shows."""
        return {"lifecycle": self._report} if self._on else {}

    def tick(self, tick: Tick) -> None:
        """Reads what was counted since the tick before. Raises MapError."""
        if not self._on:
            return
        rows = lifecycle.read(tick.session)
        self._totals = rows.totals
        self._state.update(rows.turns, rows.counts, tick.since_unix_ns, tick.now_s)
        self._settle(tick, rows)
        self._judge(rows, tick.now_unix_ns)
        self._usage = {"lives": len(rows.tgids), "turns": len(rows.turns), "crashes": len(rows.crashes)}
        if self._programs.crowded():
            keep = {
                *rows.lives["image"].tolist(),
                *rows.turns["image"].tolist(),
                *rows.crashes["image"].tolist(),
            }
            lifecycle.forget_images(tick.session, keep)
            self._programs.keep(keep)

    def _settle(self, tick: Tick, rows: LifeRows) -> None:
        """Counts processes as started that have lived for a second without exec."""
        lives, now_ns = rows.lives, time.monotonic_ns()
        old = (lives["forked"] == 1) & (lives["start_ns"] < now_ns - _SETTLED_NS)
        forks = dict(zip(rows.tgids[old].tolist(), lives[old][["start_ns", "image"]].tolist(), strict=True))
        self._settled = {pid: at for pid, at in self._settled.items() if pid in forks and forks[pid][0] == at}
        started = []
        for pid, (start_ns, image) in forks.items():
            if pid not in self._settled:
                self._settled[pid] = start_ns
                if lifecycle.settle(tick.session, pid, start_ns):
                    started.append(image)
        self._state.starts(started, tick.since_unix_ns, tick.now_s)

    def _judge(self, rows: LifeRows, now_unix_ns: int) -> None:
        """Finds crash loops that began or ended, tells them, and says how those that go on do."""
        now_ns, offset_ns = time.monotonic_ns(), unix_offset_ns()
        for loop in self._loops.update(_crash_rows(rows), now_ns):
            parent = self._parent(loop.row)
            by = f"{parent.name} (PID {parent.pid})" if parent else ""
            program = self._programs.of(loop.row.image)
            self._news.append(self._told.loop(loop, program, by, offset_ns, now_unix_ns))
        self._gauge.update(
            ((self._programs.of(loop.row.image), loop.recent) for loop in self._loops.current(now_ns)),
            now_unix_ns,
        )
        if self._news:
            self._wake()

    def _can_crash(self, row: CrashRow, failures: int, siblings: int) -> bool:
        program = self._programs.of(row.image)
        return can_crash(
            program.name,
            self._parent(row),
            row.codes,
            forked=row.forked,
            is_container=not row.key[1],
            failures=failures,
            siblings=siblings,
        )

    def _parent(self, row: CrashRow) -> Parent | None:
        """Who starts it again, as long as that is there."""
        _line, pid, start_ticks = row.key
        info = self._proc.read_process(pid) if pid else None
        if info is None or info.key.start_ticks != start_ticks:
            return None
        return Parent(pid, program_name(info.executable, info.comm, info.args))

    def program(self, number: int) -> Program | None:
        """What a number of the kernel side stands for; None where that was not kept, or 0."""
        found = self._programs.of(number)
        return None if found is NOBODYS else found

    def _find(self, number: int) -> Program | None:
        found = lifecycle.image(self._session, number) if self._session else None
        return _program(self._name(*found)) if found else None

    def _happening(self, record: LifeRecord, offset_ns: int) -> Happening:
        program = self._programs.of(record.image)
        args = split_args(record.command_line, lifecycle.ARGS_BYTES)
        executable = sanitize(record.executable or record.comm)
        if program is NOBODYS:
            name = program_name(executable, sanitize(record.comm), args)
            program = Program(executable, sanitize(name), name)
        elif record.executable and executable != program.executable:
            program = dataclasses.replace(program, executable=executable)
        return Happening(
            record.time_ns + offset_ns,
            record.turn,
            record.code,
            record.forked,
            record.key.pid,
            record.key.start_ticks,
            max(0.0, (record.time_ns - record.start_ns) / 1e9),
            record.parent,
            sanitize(record.parent_comm),
            program,
            self._masker.line(args) if self._with_lines and args else "",
        )

    def _is_told(self, what: Happening) -> bool:
        """Whether it is asked for; an exit code that is an answer is no failure."""
        if what.kind != Turn.EXIT or self._exits:
            return True
        return self._failures and bool(
            ending_of(what.code).signal or what.program.name not in ANSWERS - SHELLS
        )

    def _report(self, words: Mapping[str, str]) -> dict[str, Any]:
        """Answers `lifecycle`; the word `limit` says how many programs and ends. Raises ValueError."""
        text = words.get("limit", "20")
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
            raise ValueError(f"limit is {text[:20]!r}: must be a whole number from 1 to 1000")
        totals = {total.name.lower(): self._totals[total] for total in Total}
        loops = [
            (self._programs.of(loop.row.image), self._parent(loop.row), loop)
            for loop in self._loops.current(time.monotonic_ns())
        ]
        ends, programs = list(self._told.ends)[::-1], self._state.programs()
        return document(totals, programs, loops, ends, int(text), unix_offset_ns())


def _program(info: ProcessInfo) -> Program:
    executable = info.executable or info.comm
    name = program_name(info.executable, info.comm, info.args)
    return Program(executable, info.service or name, name)


def _crash_rows(rows: LifeRows) -> list[CrashRow]:
    found = []
    for key, row in zip(rows.crash_keys.tolist(), rows.crashes, strict=True):
        codes = dict(zip(row["codes"].tolist(), row["counts"].tolist(), strict=True))
        found.append(
            CrashRow(
                key=key,
                image=int(row["image"]),
                pid=int(row["tgid"]),
                restarts=int(row["restarts"]),
                failures=int(row["failures"]),
                successes=int(row["successes"]),
                siblings=int(row["siblings"]),
                siblings_before=int(row["siblings_before"]),
                last_ns=int(row["last_ns"]),
                life_ns=int(row["life_ns"]),
                forked=bool(row["forked"]),
                codes={code: count for code, count in codes.items() if count},
            )
        )
    return found
