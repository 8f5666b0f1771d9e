# SPDX-License-Identifier: Apache-2.0
"""Where the time went: how long system calls take, whose they are, and which threads are blocked now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.stat import Panel as Stat

from grafana import frame, look
from grafana.look import BAD, Column, Panel, Place, Text
from grafana.query import HOST, NOW, PROCESS, WINDOW, dashed, per_second, select, top, total

UID = "kernob-time"

SERVICE = 'kernob_service=~"$service"'
CALL = 'kernob_syscall=~"$call"'
OFF = "or the agent does not measure it (KERNOB_SYSCALLS)"
BUCKETS = "kernob_syscall_duration_seconds_bucket"
TIME = select("kernob_process_syscall_time_seconds_total", HOST, SERVICE, CALL)

SERVICE_COLUMN = Column(
    "kernob_service",
    "Service",
    link=("Only this service", frame.filtered(UID, "service", "Service", "host", "call")),
)

STAT, HALF, WIDE = Place(6, 4), Place(12, 9), Place(24, 9)


def board() -> Dashboard:
    """The dashboard."""
    about = "How long system calls take, by service; and threads that sit in one now."
    known = "kernob_process_syscall_time_seconds_total"
    new = frame.new(UID, "Where the time went", about).with_variable(frame.host(known))
    new.with_variable(frame.service(known)).with_variable(frame.call(known))
    for panel in _glance():
        new.with_panel(panel)
    for title, panels in (
        ("How long calls take", _heatmaps()),
        ("Whose calls", _services()),
        ("Blocked now", _blocked()),
        ("Processes", _processes()),
    ):
        new.with_row(Row(title))
        for panel in panels:
            new.with_panel(panel)
    return new


def _blocked_threads(*matchers: str) -> str:
    return select("kernob_syscall_blocked", HOST, SERVICE, CALL, *matchers)


# ---- at a glance ---------------------------------------------------------------------------------


def _glance() -> Iterator[Panel]:
    for title, says, kind, levels in (
        (
            "Stuck now",
            "Threads that have been for long in a write, on a file, or where nothing can interrupt them.",
            "stuck",
            {1.0: BAD},
        ),
        ("Waiting now", "Threads that have been waiting for long for a peer's data.", "waiting", {}),
        ("Idle now", "Threads that wait for whatever comes: epoll, futexes of pools, timers.", "idle", {}),
    ):
        chosen = _blocked_threads(f'kernob_blocked_class="{kind}"')
        threads = f"sum(last_over_time({chosen}[{NOW}]))"
        yield _number(Text(title, says, f"there is none, {OFF}.", "none"), look.COUNT, threads, levels)
    text = Text(
        "Threads inside calls",
        "Seconds in the measured calls a second: how many threads are inside one on average, waits included.",
        f"no call was made, {OFF}.",
        "no call",
    )
    yield _number(text, look.COUNT, f"{total(TIME, (), NOW)} / {NOW}")


def _number(text: Text, unit: str, expression: str, levels: Mapping[float, str] | None = None) -> Stat:
    panel = look.stat(text, unit, STAT, look.at_end(expression, text.title))
    return panel.thresholds(look.thresholds(levels))


# ---- durations -----------------------------------------------------------------------------------


def _heatmaps() -> Iterator[Panel]:
    for title, says, calls in (
        ("Reads", "read()", "read"),
        ("Writes", "write()", "write"),
        ("Futexes: locks and idle workers", "futex()", "futex"),
        ("Waits for events", "epoll_wait(), epoll_pwait() and epoll_pwait2()", "epoll_.*"),
    ):
        text = Text(
            title,
            f"How long {says} took, over all chosen services. The more calls, the stronger the colour.",
            f"no such call was made, {OFF}.",
            "no such call",
        )
        counts = total(
            select(BUCKETS, HOST, SERVICE, CALL, f'kernob_syscall=~"{calls}"'), ("vmrange",), WINDOW
        )
        yield look.heatmap(text, HALF, look.buckets(f"buckets_limit(30, prometheus_buckets({counts}))"))


# ---- by service ----------------------------------------------------------------------------------


def _services() -> Iterator[Panel]:
    by = ("kernob_service", "kernob_syscall")
    text = Text(
        "Time in calls by service",
        "Seconds a second that threads of a service spend in a call, waits included: 2 means that two "
        "threads are in it on average. Idle pools are most of it; choose calls above.",
        f"no call was made, {OFF}.",
        "no call",
    )
    spent = top(8, per_second(TIME, by), "kernob_service=all others")
    yield look.stacked(text, look.COUNT, HALF, look.over_time(spent, "{{kernob_service}} {{kernob_syscall}}"))
    text = Text(
        "Slowest calls by service",
        "What 99 of 100 calls stay below, of the services and calls where it is highest on average.",
        f"no call was made, {OFF}.",
        "no call",
    )
    counts = total(select(BUCKETS, HOST, SERVICE, CALL), (*by, "vmrange"), WINDOW)
    slow = f"topk_avg(8, histogram_quantile(0.99, {counts}))"
    yield look.lines(text, look.SECONDS, HALF, look.over_time(slow, "{{kernob_service}} {{kernob_syscall}}"))


# ---- blocked -------------------------------------------------------------------------------------


def _blocked() -> Iterator[Panel]:
    text = Text(
        "Stuck threads",
        "Threads that have been for longer than KERNOB_BLOCKED_AFTER in a call that should return by itself.",
        f"no thread was stuck, {OFF}.",
        "none stuck",
    )
    stuck = _blocked_threads('kernob_blocked_class="stuck"')
    by = "sum by (kernob_service,kernob_syscall,kernob_blocked_on)"
    legend = "{{kernob_service}} {{kernob_syscall}} on {{kernob_blocked_on}}"
    yield look.stacked(text, look.COUNT, HALF, look.over_time(f"topk_max(10, {by} ({stuck}))", legend))
    text = Text(
        "Threads waiting for a peer",
        "Threads that have been reading from a socket or pipe for long. Some programs do so rightly.",
        f"no thread waited for long, {OFF}.",
        "none waiting",
    )
    waiting = _blocked_threads('kernob_blocked_class="waiting"')
    yield look.stacked(text, look.COUNT, HALF, look.over_time(f"topk_max(10, {by} ({waiting}))", legend))
    text = Text(
        "Blocked threads now",
        "Who sits in what, on what; `kernob blocked --all` on the host names each thread, the connection, "
        "pipe or file, and since when.",
        f"no thread is blocked, {OFF}.",
        "none blocked",
    )
    labels = (
        "host_name",
        "kernob_service",
        "process_executable_name",
        "kernob_syscall",
        "kernob_blocked_on",
        "kernob_blocked_class",
    )
    now = f"topk(50, sum by ({','.join(labels)}) (last_over_time({_blocked_threads()}[{NOW}])))"
    columns = (
        Column("kernob_blocked_class", "Class", width=90),
        Column("Value", "Threads", look.COUNT, 90, sorted=True),
        SERVICE_COLUMN,
        Column("process_executable_name", "Process"),
        Column("kernob_syscall", "Call", width=110),
        Column("kernob_blocked_on", "On", width=110),
        Column("host_name", "Host", width=90),
    )
    yield look.table(text, WIDE, columns, look.rows(dashed(now, "kernob_service")))


# ---- processes -----------------------------------------------------------------------------------


def _processes() -> Iterator[Panel]:
    text = Text(
        "Processes with most time in calls",
        "Seconds that a process's threads spent in calls in the range on the screen; `kernob syscalls --pid` "
        "has the histogram.",
        f"no call was made, {OFF}.",
        "no call",
    )
    labels = (*PROCESS, "kernob_syscall")
    most = f"topk(50, {total(TIME, labels)})"
    columns = (
        Column("process_executable_name", "Process"),
        Column("process_pid", "PID", width=80),
        SERVICE_COLUMN,
        Column("kernob_syscall", "Call", width=110),
        Column("Value", "Time", look.SECONDS, 100, sorted=True),
        Column("host_name", "Host", width=90),
    )
    yield look.table(text, WIDE, columns, look.rows(dashed(most, "process_pid")))
