# SPDX-License-Identifier: Apache-2.0
"""Who came and went: programs that start, end, fail, crash again and again, or are killed for memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.stat import Panel as Stat

from grafana import frame, look
from grafana.look import BAD, WARN, Column, Panel, Place, Text
from grafana.query import HOST, NOW, WINDOW, dashed, for_each, per_second, select, top, total

UID = "kernob-lifecycle"

SERVICE = 'kernob_service=~"$service"'
PROGRAM = ("host_name", "kernob_service", "process_executable_name")
HOW = ("process_exit_code", "kernob_exit_signal")
OFF = "or the agent does not look (KERNOB_LIFECYCLE; hooks: see Kernob itself)"
EXACT = "time:YYYY-MM-DD HH:mm:ss.SSS"
"""Grafana's unit for milliseconds since 1970, in full."""

ASKED_TO_END = ("SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM")
FAILURE = (
    'process_exit_code!~"0|129|130|141|143"',
    f'kernob_exit_signal!~"{"|".join(ASKED_TO_END)}"',
)
"""What the agent calls a failure: an exit code that is not 0, or a signal, nobody having asked for an end."""

STARTS = select("kernob_process_starts_total", HOST, SERVICE)
EXITS = select("kernob_process_exits_total", HOST, SERVICE)
FAILED = select("kernob_process_exits_total", HOST, SERVICE, *FAILURE)
KILLED = select(
    "kernob_process_exits_total",
    HOST,
    SERVICE,
    'kernob_exit_signal!=""',
    f'kernob_exit_signal!~"{"|".join(ASKED_TO_END)}"',
)
OOM_KILLS = select("kernob_process_oom_kills_total", HOST, SERVICE)
LOOPS = f"last_over_time({select('kernob_process_crash_loop', HOST, SERVICE)}[{NOW}])"

SERVICE_COLUMN = Column(
    "kernob_service", "Service", link=("Only this service", frame.filtered(UID, "service", "Service", "host"))
)

NUMBER, HALF, WIDE = Place(4, 4), Place(12, 9), Place(24, 9)
FIRST = Place(8, 4)


def board() -> Dashboard:
    """The dashboard."""
    about = "Programs that start, end, fail, crash again and again, or are killed because memory ran out."
    known = "kernob_process_starts_total"
    new = frame.new(UID, "Who came and went", about).with_variable(frame.host(known))
    new.with_variable(frame.service(known)).annotation(_marks())
    for panel in _glance():
        new.with_panel(panel)
    for title, panels in (
        ("Crash loops", _loops()),
        ("Ends", _ends()),
        ("Coming and going", _turns()),
    ):
        new.with_row(Row(title))
        for panel in panels:
            new.with_panel(panel)
    return new


def _marks() -> frame.Marks:
    """When crash loops were last seen to begin or end."""
    kind = 'kernob_event_kind="kernob.process.crash_loop"'
    last = select("kernob_event_last_time_seconds", HOST, SERVICE, kind)
    exact = f"topk(20, max by (host_name,kernob_service) ({last})) * 1000"
    return frame.Marks("Crash loops", "red", exact, "{{kernob_service}}: crash loop", "{{host_name}}")


# ---- at a glance ---------------------------------------------------------------------------------


def _glance() -> Iterator[Panel]:
    text = Text(
        "Crash loops now",
        "Programs that fail and are started again and again, however short their lives: what their logs may "
        "not tell. `kernob lifecycle` says who starts them again.",
        f"nothing is in a crash loop, {OFF}.",
        "none",
    )
    yield _number(text, FIRST, f"count({LOOPS} > 0)", {1.0: BAD})
    for title, says, counter, levels in (
        ("Killed for memory", "Processes the kernel killed because memory ran out.", OOM_KILLS, {1.0: BAD}),
        (
            "Killed by a signal",
            "Ends by a signal that does not ask to end: SIGSEGV, SIGABRT, SIGKILL, ...",
            KILLED,
            {1.0: WARN},
        ),
        (
            "Failed ends",
            "Those, and ends with an exit code that is not 0. For grep, test, curl and their like that is an "
            "answer: look at which service it is.",
            FAILED,
            {},
        ),
        ("Starts", "Programs started.", STARTS, {}),
    ):
        text = Text(title, f"{says} In the range on the screen.", f"there was none, {OFF}.", "none")
        yield _number(text, NUMBER, f"round({total(counter)})", levels)


def _number(text: Text, place: Place, expression: str, levels: Mapping[float, str]) -> Stat:
    panel = look.stat(text, look.COUNT, place, look.at_end(expression, text.title))
    panel = panel.thresholds(look.thresholds(levels))
    return panel.links([frame.see("TCP health", "kernob-tcp"), frame.see("Host", "kernob-host")])


# ---- crash loops ---------------------------------------------------------------------------------


def _loops() -> Iterator[Panel]:
    text = Text(
        "Restarts of what crashes",
        "Restarts within the agent's window (KERNOB_CRASH_LOOP_WINDOW) of what is in a crash loop.",
        f"nothing was in a crash loop, {OFF}.",
        "no crash loop",
    )
    loops = f"topk_max(10, max by ({','.join(PROGRAM)}) ({LOOPS})) > 0"
    legend = "{{kernob_service}} ({{process_executable_name}}) {{host_name}}"
    yield look.lines(text, look.COUNT, HALF, look.over_time(loops, legend))
    text = Text(
        "Crash loops, now and before",
        "Every program that was in a crash loop, with its restarts within the window as they stand: 0 once "
        "it is calm. Begin and end to the millisecond: `kernob events --kind crash_loop`.",
        f"nothing was in a crash loop since the agent started, {OFF}.",
        "no crash loop",
    )
    now = f"topk(30, max by ({','.join(PROGRAM)}) ({LOOPS}))"
    columns = (
        Column(
            "Value",
            "Restarts",
            look.COUNT,
            80,
            levels={1.0: BAD},
            words={"0": ("calm", "green")},
            sorted=True,
        ),
        SERVICE_COLUMN,
        Column("process_executable_name", "Program"),
        Column("host_name", "Host", width=90),
    )
    yield look.table(text, HALF, columns, look.rows(now))


# ---- ends ----------------------------------------------------------------------------------------


def _ends() -> Iterator[Panel]:
    text = Text(
        "Failed ends by service",
        "Ends a second with an exit code that is not 0, or by a signal that does not ask to end.",
        f"nothing failed, {OFF}.",
        "nothing failed",
    )
    failed = top(8, per_second(FAILED, ("kernob_service", *HOW)), "kernob_service=all others")
    legend = "{{kernob_service}} {{process_exit_code}}{{kernob_exit_signal}}"
    yield look.stacked(text, "cps", HALF, look.over_time(failed, legend))
    text = Text(
        "Killed by the kernel or by a signal",
        "Ends in each two minutes (or pixel) by signal, and how many of them because memory ran out.",
        f"nothing was killed, {OFF}.",
        "nothing killed",
    )
    by = ("kernob_service", "kernob_exit_signal")
    killed = f"topk_max(8, {total(KILLED, by, WINDOW)}) > 0"
    memory = f"topk_max(8, {total(OOM_KILLS, ('kernob_service',), WINDOW)}) > 0"
    yield look.lines(
        text,
        look.COUNT,
        HALF,
        look.over_time(killed, "{{kernob_service}} {{kernob_exit_signal}}", "A"),
        look.over_time(memory, "{{kernob_service}} out of memory", "B"),
    )
    text = Text(
        "How programs ended",
        "Failed ends in the range on the screen, by program, exit code and signal. Each of them, with its "
        "lifetime and command line: `kernob events --kind exit --service NAME`.",
        f"nothing failed, {OFF}.",
        "nothing failed",
    )
    how = f"topk(50, round({total(FAILED, (*PROGRAM, *HOW))}) > 0)"
    columns = (
        SERVICE_COLUMN,
        Column("process_executable_name", "Program"),
        Column("process_exit_code", "Exit code", width=90),
        Column("kernob_exit_signal", "Signal", width=100),
        Column("Value", "Ends", look.COUNT, 90, sorted=True),
        Column("host_name", "Host", width=90),
    )
    yield look.table(text, HALF, columns, look.rows(dashed(how, *HOW, "kernob_service")))
    text = Text(
        "Newest ends",
        "When a process of a service last failed, or its crash loop began or ended, by the kernel's clock, "
        "to the millisecond. Every single one stands in the logs and in `kernob events`.",
        f"no failure in the last day, {OFF}.",
        "nothing failed",
    )
    kinds = 'kernob_event_kind=~"kernob.process.(exit|crash_loop)"'
    last = select("kernob_event_last_time_seconds", HOST, SERVICE, kinds)
    newest = f"topk(50, max by (host_name,kernob_service,kernob_event_kind) ({last})) * 1000"
    shown = (
        Column("Value", "When", EXACT, 190, sorted=True),
        Column("kernob_event_kind", "What", width=180),
        SERVICE_COLUMN,
        Column("host_name", "Host", width=90),
    )
    yield look.table(text, HALF, shown, look.rows(dashed(newest, "kernob_service")))


# ---- coming and going ----------------------------------------------------------------------------


def _turns() -> Iterator[Panel]:
    by = ("kernob_service", "process_executable_name")
    for title, says, counter in (
        (
            "Starts by program",
            "Programs started a second: what forks and execs all the time costs CPU.",
            STARTS,
        ),
        ("Ends by program", "Processes that ended a second, well or not.", EXITS),
    ):
        text = Text(title, says, f"there was none, {OFF}.", "none")
        turns = top(8, per_second(counter, by), "kernob_service=all others")
        legend = "{{kernob_service}} {{process_executable_name}}"
        yield look.stacked(text, "cps", HALF, look.over_time(turns, legend))
    text = Text(
        "Programs",
        "Starts and ends in the range on the screen, most starts first. What runs other programs counts "
        "one start for each of them.",
        f"nothing started, {OFF}.",
        "nothing started",
    )
    most = f"topk(50, round({total(STARTS, PROGRAM)}) > 0)"
    columns = (
        SERVICE_COLUMN,
        Column("process_executable_name", "Program"),
        Column("Value #A", "Starts", look.COUNT, 90, sorted=True),
        Column("Value #B", "Ends", look.COUNT, 90),
        Column("Value #C", "Failed", look.COUNT, 90, levels={1.0: WARN}),
        Column("Value #D", "Out of memory", look.COUNT, 120, levels={1.0: BAD}),
        Column("host_name", "Host", width=90),
    )
    queries = [look.rows(dashed(most, "kernob_service"), "A")]
    for ref, counter in (("B", EXITS), ("C", FAILED), ("D", OOM_KILLS)):
        each = for_each(most, f"round({total(counter, PROGRAM)})")
        queries.append(look.rows(dashed(each, "kernob_service"), ref))
    yield look.table(text, WIDE, columns, *queries)
