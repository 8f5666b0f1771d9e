# SPDX-License-Identifier: Apache-2.0
"""The agent: ticks a Pipeline, feeds exporters, serves screens, and ends cleanly.

`Agent` is the tick loop with its subscribers; `run_agent` composes it with everything that leaves the
process. Called by `cli` (run) and `ui.top` (when no agent runs).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from kernob import __version__
from kernob.config import Settings
from kernob.errors import KernelError
from kernob.model import Event, HookReport, Pulse, Snapshot
from kernob.pipeline import Pipeline, check_machine, confined, spare_memory
from kernob.state.journal import Journal
from kernob.state.points import MetricBatch

if TYPE_CHECKING:
    from kernob.export.outlet import Outlet
    from kernob.state.store import Store

log = logging.getLogger(__name__)

_MIN_WATCH_S = 0.2
_PULSE_TICKS, _PULSE_MIN_S = 3, 10.0
"""So many intervals without a tick, and at least so long, say that it hangs: a busy machine's are late."""
_STOP_JOIN_S = 10.0
_FLUSH_S, _FLUSH_MOST_S = 2.0, 6.0
"""Without an answer, and in all: with the rest of an end below the 10 s after which docker kills."""
_STORE_FLUSH_S = 0.8  # with _FLUSH_S, an end within the 3 s that are promised
_SIGNAL_LOOK_S = 1.0
_ANSWER_S = 10.0


class Sink(Protocol):
    """Takes what is to be exported; must never block the tick."""

    def submit(self, batch: MetricBatch, snapshot: Snapshot) -> None:
        """Accepts a batch; may replace one that still waits."""

    def submit_events(self, events: Sequence[Event]) -> None:
        """Accepts what happened."""

    @property
    def lost_events(self) -> int:
        """Events that could not be exported (cumulative)."""

    def acknowledged(self) -> list[MetricBatch]:
        """Batches that are safely away since the last call."""

    def close(self, timeout_s: float) -> None:
        """Sends what waits, within the time."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Question:
    """A client's, and where its answer is awaited."""

    name: str
    words: Mapping[str, str]
    answer: concurrent.futures.Future[Mapping[str, Any]] = dataclasses.field(
        default_factory=concurrent.futures.Future
    )


class Agent:
    """Ticks in a thread of its own from `__enter__` to `__exit__`. Any thread may subscribe."""

    def __init__(
        self,
        settings: Settings,
        sink: Sink | None = None,
        on_end: Callable[[], None] | None = None,
        journal: Journal | None = None,
        kept: Store | None = None,
        *,
        drop_capabilities: bool = False,
    ) -> None:
        """Nothing happens before `with`. `on_end` is called when ticking ends, also by failure.

        `journal` gets the events; it is the caller's to close. `kept` is where the service map
        outlives us. `drop_capabilities`: once all is attached, the thread that enters gives up what is no
        longer needed.
        Raises PreconditionError where nothing could be attached anyway.
        """
        check_machine()
        self._settings = settings
        self._sink = sink
        self._on_end = on_end
        self._journal = journal
        self._drop_capabilities = drop_capabilities
        self._pipeline = Pipeline(settings, self._on_events, kept)
        self._changed = threading.Condition()
        self._events_wait = False
        self._questions: deque[_Question] = deque()
        self._snapshot: Snapshot | None = None
        self._serial = 0
        self._ticking = False
        self._ticked_s = time.monotonic()
        self._watchers: dict[object, float] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="tick", daemon=True)
        self.failure: Exception | None = None

    def __enter__(self) -> Agent:
        """Attaches and starts ticking. Raises PreconditionError or KernelError."""
        self._pipeline.__enter__()
        try:
            if self._drop_capabilities:
                self._pipeline.drop_capabilities()
            self._pipeline.watch()
        except BaseException:
            self._pipeline.__exit__(None, None, None)
            raise
        self._ticked_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_STOP_JOIN_S)
        if self._thread.is_alive():  # it still reads what would be closed; the process's end closes it, too
            self.failure = self.failure or TimeoutError(f"the last reading took over {_STOP_JOIN_S:g} s")
            return
        self._pipeline.__exit__(kind, error, trace)

    def latest(self) -> Snapshot | None:
        """The last tick's snapshot; its flows are there only while somebody watches. None at first."""
        with self._changed:
            return self._snapshot

    def pulse(self) -> Pulse:
        """How long ago the last tick ended, or attaching did, and from when on that is too long."""
        limit_s = max(_PULSE_MIN_S, _PULSE_TICKS * self._settings.scrape_interval_s)
        return Pulse(time.monotonic() - self._ticked_s, limit_s)

    @property
    def hooks(self) -> tuple[HookReport, ...]:
        """What was attached, and how."""
        return self._pipeline.hooks

    def subscribe(self, interval_s: float) -> Generator[Snapshot, None, None]:
        """Snapshots, at least one every `interval_s`, until closed or the agent ends.

        A slow reader misses snapshots; it never gets an old one twice, nor that of a tick that was under
        way when it came: nobody may have watched then, and it lists no flows.
        """
        token = object()
        with self._changed:
            self._watchers[token] = max(_MIN_WATCH_S, interval_s)
            seen = self._serial + self._ticking
            self._changed.notify_all()
        try:
            while True:
                snapshot, seen = self._next_after(seen)
                if snapshot is None:
                    return
                yield snapshot
        finally:
            with self._changed:
                del self._watchers[token]

    def report(self, name: str, words: Mapping[str, str]) -> Mapping[str, Any]:
        """One of the features' answers, found in the tick thread, which owns what it is made of.

        Raises ValueError for a question that makes no sense, or that is not answered in time.
        """
        question = _Question(name, words)
        with self._changed:
            if self._stopping or self.failure:
                raise ValueError("the agent ends")
            self._questions.append(question)
            self._changed.notify_all()
        try:
            return question.answer.result(_ANSWER_S)
        except concurrent.futures.TimeoutError:
            raise ValueError(f"the agent was too busy to answer for {_ANSWER_S:g} s") from None

    def _answer_questions(self) -> None:
        while True:
            with self._changed:
                if not self._questions:
                    return
                question = self._questions.popleft()
            try:
                question.answer.set_result(self._pipeline.report(question.name, question.words))
            except Exception as error:  # whatever a question stumbles over, the tick goes on
                if not isinstance(error, ValueError):
                    log.exception("report %s", question.name)
                question.answer.set_exception(ValueError(str(error)))

    def _next_after(self, seen: int) -> tuple[Snapshot | None, int]:
        """Waits for a snapshot newer than number `seen`; None when the agent ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._serial > seen or self._stopping or self.failure)
            if self._stopping or self.failure:
                return None, seen
            return self._snapshot, self._serial

    def _loop(self) -> None:
        try:
            self._run()
        except Exception as error:  # whatever it is, the agent must say so and end, not hang
            log.debug("tick thread", exc_info=True)
            self.failure = error
        with self._changed:
            self._changed.notify_all()
        if self._on_end:
            self._on_end()

    def _run(self) -> None:
        export_every_s = self._settings.otlp.export_interval_s or 0.0
        interval_s = self._settings.scrape_interval_s
        exported_s = due_s = last_s = time.monotonic()
        while True:
            stopping, watch_s = self._wait_for_turn(due_s, last_s)
            if stopping:
                self._pipeline.detach()
            last_s = now_s = time.monotonic()
            window_s = watch_s or self._settings.aggregation_window_s
            scheduled = stopping or now_s >= due_s
            self._tell_events(with_summaries=scheduled)
            snapshot = self._counting_our_losses(self._pipeline.tick(window_s, watch_s is not None))
            if now_s >= due_s:
                # whole intervals, so that a late tick does not shift those after it
                due_s += interval_s * (1 + int((now_s - due_s) / interval_s))
            if scheduled and (stopping or now_s - exported_s >= export_every_s * 0.99):
                exported_s = now_s
                self._export(snapshot)
            with self._changed:
                self._snapshot = snapshot
                self._ticked_s = time.monotonic()
                self._serial += 1
                self._ticking = False
                self._changed.notify_all()
            self._answer_questions()  # also where ticks follow each other without a pause
            if stopping:
                return

    def _wait_for_turn(self, due_s: float, last_s: float) -> tuple[bool, float | None]:
        """Sleeps until the schedule's next tick, or an earlier one for whoever watches.

        Events are told meanwhile, as they come. Returns whether to stop, and the interval of the most
        impatient watcher.
        """
        while True:
            with self._changed:
                watch_s = min(self._watchers.values(), default=None)
                next_s = due_s if watch_s is None else min(due_s, last_s + watch_s)
                pause_s = next_s - time.monotonic()
                if self._stopping or pause_s <= 0:
                    self._ticking = True
                    return self._stopping, watch_s
                if not self._events_wait and not self._questions:
                    self._changed.wait(pause_s)
                    continue
            self._tell_events()
            self._answer_questions()

    def _on_events(self) -> None:
        """Called by the thread that reads the kernel's ring."""
        with self._changed:
            self._events_wait = True
            self._changed.notify_all()

    def _tell_events(self, with_summaries: bool = False) -> None:
        """Names what happened and hands it on; `with_summaries` once a scheduled tick."""
        with self._changed:
            self._events_wait = False
        events = self._pipeline.events()
        if with_summaries:
            events += self._pipeline.summaries()
        if events and self._journal:
            self._journal.note(events)
        if events and self._sink:
            self._sink.submit_events(events)
        if with_summaries and self._journal:
            self._journal.commit()

    def _counting_our_losses(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, with what was lost behind the pipeline."""
        losses = dict(snapshot.losses)
        if self._sink:
            losses["event_export"] = self._sink.lost_events
        if self._journal:
            losses["event_store"] = self._journal.lost
        return dataclasses.replace(snapshot, losses=losses)

    def _export(self, snapshot: Snapshot) -> None:
        if self._sink is None:
            return
        store = self._pipeline.store
        for batch in self._sink.acknowledged():
            store.acknowledge(batch)
        self._sink.submit(store.batch(snapshot.time_unix_ns), snapshot)


class _StoppedEarlyError(BaseException):
    """A signal came before the agent was ready. Not an Exception: nothing may mistake it for a failure."""


class _Signals:
    """SIGTERM and SIGINT: while starting they interrupt whatever runs, afterwards they set `stop`."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._starting = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def started(self) -> None:
        """From now on a signal means an orderly end with a last reading."""
        self._starting = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        again = self.stop.is_set()
        self.stop.set()
        if again:
            return
        if self._starting:
            raise _StoppedEarlyError
        log.info("%s: reading once more, flushing", signal.Signals(number).name)


def _outlet(settings: Settings, otlp_file: Path | None) -> Outlet[MetricBatch]:
    """The way out, made where its library's threads get no capability that will be dropped later."""
    from kernob.export.outlet import Outlet

    attributes, roots = settings.resource_attributes, (settings.proc_root, settings.host_root)

    def make() -> Outlet[MetricBatch]:
        return Outlet(settings.otlp, attributes, otlp_file, __version__, *roots, logs=settings.otlp_logs)

    return confined(make) if settings.drop_capabilities else make()


def run_agent(settings: Settings, otlp_file: Path | None) -> int:
    """`kernob run`: until SIGTERM or SIGINT, then one last reading is flushed. Returns the exit code.

    Raises ConfigError, PreconditionError or KernelError before anything is attached or after all is
    taken back.
    """
    from kernob.export.socket import SnapshotServer
    from kernob.state.history import last_number
    from kernob.state.store import Store

    spare_memory()
    check_machine()  # first, because without root much else is refused too, for the same reason
    try:
        signals = _Signals()
        with contextlib.ExitStack() as stack:
            outlet = _outlet(settings, otlp_file)
            stack.callback(outlet.close, _FLUSH_S, _FLUSH_MOST_S)
            store = Store(settings.state_dir, settings.max_stored_events)
            journal = Journal(store, max(time.time_ns(), last_number(settings.state_dir) + 1))
            stack.callback(journal.close, _STORE_FLUSH_S)
            agent = Agent(
                settings,
                outlet,
                signals.stop.set,
                journal,
                store,
                drop_capabilities=settings.drop_capabilities,
            )
            server = SnapshotServer(settings.socket_path, agent, events=journal)
            server.bind()
            stack.callback(server.close)
            stack.enter_context(agent)
            store.start()  # no thread but the agent's own before: it may give capabilities up
            signals.started()
            server.start()
            log.info("ready: %d hooks attached", len(agent.hooks))
            while not signals.stop.wait(_SIGNAL_LOOK_S):
                pass  # a signal may have been delivered to another thread, which wakes nobody
    except _StoppedEarlyError:
        log.info("stopped before everything was attached; all is taken back")
        return 0
    if agent.failure:
        raise KernelError(f"the agent stopped: {agent.failure}") from agent.failure
    return 0
