# SPDX-License-Identifier: Apache-2.0
"""`kernob doctor`: a `DoctorReport` enters, a page or a JSON document and an exit code leave.

Called by `cli`. What is attached comes from the running agent where there is one, so that nothing is
loaded a second time; else `examine` (`kernob.examine`) tries every hook and takes it away again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from rich.console import Group as RenderGroup
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kernob.config import Settings
from kernob.errors import KernelError
from kernob.model import DoctorReport, HookReport, ProbeState
from kernob.ui.client import agent_listens, fetch_once
from kernob.ui.page import print_page
from kernob.ui.tables import human
from kernob.view import View

REPORT_VERSION = 1
NOT_NEEDED = "not needed"

Examine = Callable[[Settings, View | None], DoctorReport]

_OK, _BAD, _NOTE = "ok", "!!", "--"
_MARK_STYLES = {_OK: "green", _BAD: "bold red", _NOTE: "dim"}
_ROOT_CAPABILITIES = frozenset(("CAP_SYS_ADMIN",))
_NEEDED_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON")
_USES = {
    "tracefs": "kprobes and system calls",
    "debugfs": "not needed",
    "bpffs": "not needed",
    "cgroup2": "not needed",
}
_MANY_LOST = 0.9
"""A map fuller than this is pointed out."""

_Line = tuple[str, str, str]
"""Mark, name, text."""


def run_doctor(settings: Settings, as_json: bool, examine: Examine | None = None) -> int:
    """Print the report and return 0 where everything essential is attached, else what `kernob run` would.

    `examine` gets the settings and the running agent's view (None: no agent runs). Raises
    AgentUnreachableError where an agent runs and does not answer, PreconditionError where it may not be
    asked.
    """
    path = settings.socket_path
    view = fetch_once(path) if agent_listens(path) else None
    report = (examine or _examine)(settings, view)
    if as_json:
        sys.stdout.write(as_document(report) + "\n")
        sys.stdout.flush()
    else:
        print_page(lambda _width: page(report))
    return 0 if is_fit(report) else report.problem_code or KernelError.exit_code


def _examine(settings: Settings, view: View | None) -> DoctorReport:
    """Look around. By its module's name, because screens do not depend on what composes the agent."""
    report: DoctorReport = importlib.import_module("kernob.examine").examine(settings, view)
    return report


def is_fit(report: DoctorReport) -> bool:
    """Say whether everything essential is attached (or was, while it was tried)."""
    essential = [hook for hook in report.hooks if not _is_optional(hook, report)]
    return bool(essential) and not report.problem and all(map(_is_attached, essential))


def as_document(report: DoctorReport) -> str:
    """Return the report as one line of JSON: the fields of DoctorReport, `fit` (is_fit) and `v` (1)."""
    document: dict[str, Any] = {"v": REPORT_VERSION, "fit": is_fit(report)}
    document |= msgspec.to_builtins(report)
    return msgspec.json.encode(_visible_everywhere(document)).decode()


def page(report: DoctorReport) -> RenderableType:
    """Return the report for people; marks are words, colour only repeats them."""
    verdict = ("everything essential attaches", "bold green") if is_fit(report) else ("NOT FIT", "bold red")
    parts: list[RenderableType] = [Text.assemble(("kernob doctor", "bold"), "  ", verdict)]
    if report.problem:
        parts += [Text(), _table([(_BAD, "problem", report.problem)])]
    parts += _section("Machine", list(_machine(report)))
    parts += _section(_hooks_title(report), list(_hooks(report)))
    parts += _section("Losses and maps", list(_losses(report)))
    parts += _section("What Kernob cannot see", [(_NOTE, "", text) for text in report.blind_spots])
    parts += _section("What to do", [(f"{n}.", "", text) for n, text in enumerate(report.advice, start=1)])
    return RenderGroup(*parts)


def _section(name: str, lines: list[_Line]) -> list[RenderableType]:
    return [Text(), Text(name, "bold"), _table(lines)] if lines else []


def _table(lines: list[_Line]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    named = any(name for _mark, name, _text in lines)
    if named:
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for mark, name, text in lines:
        cells = [Text(f"  {mark}", _MARK_STYLES.get(mark, ""))]
        if named:
            cells.append(Text(name))
        grid.add_row(*cells, Text(_visible(text), "dim" if mark == "" else ""))
    return grid


def _machine(report: DoctorReport) -> Iterator[_Line]:
    yield _OK, "kernel", f"{report.kernel} {report.architecture}"
    if report.in_container:
        yield _OK, "place", "in a container"
    held = set(report.capabilities)
    missing = [] if held & _ROOT_CAPABILITIES else [name for name in _NEEDED_CAPABILITIES if name not in held]
    who = "root" if report.uid == 0 else f"uid {report.uid}"
    holds = ", ".join(report.capabilities) or "no capability that matters here"
    yield _BAD if missing else _OK, "user", f"{who}, with {holds}"
    if missing:
        yield _BAD, "missing", ", ".join(missing)
    lockdown = {"confidentiality": _BAD, "unknown": _NOTE}.get(report.lockdown, _OK)
    yield lockdown, "lockdown", report.lockdown
    yield _OK if report.btf else _NOTE, "BTF", report.btf or "none: offsets come from kernel headers"
    without = _NOTE if report.btf else _BAD
    yield (
        _OK if report.headers else without,
        "headers",
        report.headers or ("none, and none needed with BTF" if report.btf else "none"),
    )
    yield _OK if report.bcc else _BAD, "BCC", report.bcc or "not installed"
    for name, point in report.mounts.items():
        own = "; Kernob mounts its own" if report.may_mount and name == "tracefs" else ""
        use = f" ({_USES[name]}{own})" if name in _USES else ""
        yield _OK if point else _NOTE, name, point or f"not mounted{use}"


def _hooks_title(report: DoctorReport) -> str:
    if report.agent:
        return f"Hooks, as the running agent on {_visible(report.agent)} attached them"
    return "Hooks, tried for this report and taken away again"


def _hooks(report: DoctorReport) -> Iterator[_Line]:
    for hook in report.hooks:
        optional = " (optional)" if _is_optional(hook, report) else ""
        name = f"{hook.probe}.{hook.hook}"
        if _is_attached(hook):
            measures = next((one.measures for one in hook.attempts if one.attached), "")
            yield _OK, name, hook.strategy + (f": {measures}" if measures else "")
        elif hook.state is ProbeState.OFF:
            yield _NOTE if optional else _BAD, name, f"switched off{optional}"
        else:
            yield _NOTE if optional else _BAD, name, f"nothing could be attached{optional}"
        for attempt in hook.attempts:
            if not attempt.attached and attempt.reason and attempt.reason != NOT_NEEDED:
                yield "", "", f"not {attempt.strategy}: {attempt.reason}"


REMEDIES: Final = {
    "map_full": "bytes; raise KERNOB_MAX_FLOWS or KERNOB_MAX_PROCESSES",
    "sockets_full": "bytes; raise KERNOB_MAX_SOCKETS",
    "calls_full": "bytes, failed connects and waits, of more threads in calls at once than there is room for",
    "facts_full": "failures and durations; raise KERNOB_MAX_FLOWS or KERNOB_MAX_DURATIONS",
    "syscalls_full": "durations of system calls; raise KERNOB_MAX_SYSCALL_HISTOGRAMS",
    "threads_full": "durations of system calls; raise KERNOB_MAX_THREADS",
    "lives_full": "starts and ends; raise KERNOB_MAX_LIVES",
    "programs_full": "names of programs in a storm of starts: kernob lifecycle",
    "turns_full": "starts and ends in a storm of them: kernob lifecycle",
    "ring_full": "events of connections; raise KERNOB_EVENT_RING_BYTES",
    "life_ring_full": "events of processes in a storm of starts and ends: kernob lifecycle",
    "event_store": "stored events; look at the disk under KERNOB_STATE_DIR",
    "event_export": "events in the backend; look at the OTLP endpoint",
    "recursion": "single calls that interrupted themselves",
    "decode": "events that the agent does not understand; report it",
    "series_cap": "no byte, but names; raise KERNOB_MAX_PROCESS_FLOW_SERIES and its like",
    "names_full": "hostnames; raise KERNOB_MAX_NAMES",
    "names_ring_full": "hostnames: more lookups at once than there is room for",
    "names_undecoded": "hostnames: answers that the agent does not understand",
}
"""What a loss of this cause is of, and what to do (in full: victoriametrics/README.md)."""


def _losses(report: DoctorReport) -> Iterator[_Line]:
    lost = {cause: count for cause, count in report.losses.items() if count}
    for cause, count in sorted(lost.items()):
        what = REMEDIES.get(cause, "victoriametrics/README.md, KernobLosses")
        yield _BAD, f"lost {_visible(cause)}", f"{count:,} since the agent started: {what}"
    if report.losses and not lost:
        yield _OK, "lost", "nothing since the agent started"
    for usage in report.maps:
        full = usage.entries > usage.capacity * _MANY_LOST
        text = f"{usage.entries:,} of {usage.capacity:,} entries, {human(usage.memory_bytes, 'B')}"
        yield _BAD if full else _OK, f"map {_visible(usage.name)}", text


def _is_attached(hook: HookReport) -> bool:
    return hook.state is ProbeState.ATTACHED


def _is_optional(hook: HookReport, report: DoctorReport) -> bool:
    return f"{hook.probe}.{hook.hook}" in report.optional_hooks


def _visible(text: str) -> str:
    """Return the text on one line, without anything a terminal would obey; a verifier's log has lines."""
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def _visible_everywhere(value: Any) -> Any:
    if isinstance(value, str):
        return _visible(value)
    if isinstance(value, dict):
        return {_visible_everywhere(key): _visible_everywhere(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_visible_everywhere(one) for one in value]
    return value
