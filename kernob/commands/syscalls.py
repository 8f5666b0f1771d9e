# SPDX-License-Identifier: Apache-2.0
"""`kernob syscalls` and `kernob blocked`."""

from __future__ import annotations

from pathlib import Path

import click

from kernob.commands.base import EXIT_CODES, load
from kernob.commands.options import SYSCALL_SORTS, Seconds, config_option, socket_option

_pid_option = click.option(
    "--pid", type=click.IntRange(1, 2**31 - 1), help="Only this process, as the host numbers it."
)
_service_option = click.option("--service", metavar="NAME", default="", help="Only this service.")
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
_watch_option = click.option(
    "--watch",
    "watch_s",
    metavar="SECONDS",
    type=Seconds(),
    help="Go on, every so many seconds (0.2 to 300), until Ctrl-C.",
)


def _words(**words: object) -> dict[str, str]:
    return {name: str(value) for name, value in words.items() if value not in (None, "")}


@click.command(epilog=EXIT_CODES, short_help="Where the time went: durations of system calls.")
@config_option
@socket_option
@_pid_option
@_service_option
@click.option("--call", "syscall", metavar="NAME", default="", help="Only this system call.")
@click.option(
    "--by",
    "group",
    type=click.Choice(("service", "process")),
    help="What one row stands for (default: service; with --pid process).",
)
@click.option(
    "--sort", type=click.Choice(SYSCALL_SORTS), default="time", show_default=True, help="Largest first."
)
@click.option("--bars", is_flag=True, help="The whole histogram of each row.")
@_json_option
@click.option(
    "--limit", metavar="ROWS", type=click.IntRange(1, 20_000), help="At most so many rows (default: 50)."
)
@_watch_option
def syscalls(  # noqa: PLR0913, PLR0917  one argument per option
    config_file: Path | None,
    socket_path: str | None,
    pid: int | None,
    service: str,
    syscall: str,
    group: str | None,
    sort: str,
    bars: bool,
    as_json: bool,
    limit: int | None,
    watch_s: float | None,
) -> int:
    """Show how long system calls took, by service or process; asks the running agent.

    From the agent's start on; with --watch, since the time before. KERNOB_SYSCALLS says which are measured.

    \b
    Examples:
      kernob syscalls
      kernob syscalls --service postgresql --bars
      kernob syscalls --pid 1234 --call futex --watch 2
      kernob syscalls --json | jq '.rows[] | select(.p99_s > 0.1)'
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.syscalls import Choice, run_syscalls

    choice = Choice(group or ("process" if pid else "service"), sort, syscall, limit, bars)
    return run_syscalls(settings, choice, _words(pid=pid, service=service), as_json=as_json, watch_s=watch_s)


@click.command(epilog=EXIT_CODES, short_help="Threads that sit in one system call now, and on what.")
@config_option
@socket_option
@_pid_option
@_service_option
@click.option(
    "--after",
    "after_s",
    metavar="SECONDS",
    type=click.FloatRange(0, 1e6),
    help="Longer than so many seconds (default: KERNOB_BLOCKED_AFTER).",
)
@click.option("--all", "every", is_flag=True, help="Idle ones, too: epoll, futexes of pools, timers.")
@_json_option
@click.option(
    "--limit", metavar="ROWS", type=click.IntRange(1, 500), help="At most so many rows (default: 100)."
)
@_watch_option
def blocked(  # noqa: PLR0913, PLR0917  one argument per option
    config_file: Path | None,
    socket_path: str | None,
    pid: int | None,
    service: str,
    after_s: float | None,
    every: bool,
    as_json: bool,
    limit: int | None,
    watch_s: float | None,
) -> int:
    """Show threads that have been in one system call for long, the most worrying first.

    Asks the running agent. Stuck: a write, a file, a lock with an owner, anything uninterruptible. Waiting:
    for a peer's data. Idle: for whatever comes.

    \b
    Examples:
      kernob blocked
      kernob blocked --after 1 --service orders.py
      kernob blocked --all --pid 1234
      kernob blocked --json | jq '.rows[] | .what'
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.blocked import run_blocked

    words = _words(pid=pid, service=service, after_s=after_s)
    return run_blocked(settings, words, every=every, as_json=as_json, limit=limit, watch_s=watch_s)
