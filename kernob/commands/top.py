# SPDX-License-Identifier: Apache-2.0
"""`kernob top`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernob.commands.base import EXIT_CODES, load
from kernob.commands.options import GROUPS, SORTS, Seconds, config_option, socket_option

if TYPE_CHECKING:
    from kernob.agent import Agent
    from kernob.config import Settings


def _start_agent(settings: Settings) -> Agent:
    """Make the agent of a screen that found none running. Raises PreconditionError where none can be."""
    from kernob.agent import Agent

    return Agent(settings)


@click.command(epilog=EXIT_CODES, short_help="Live traffic by process and destination.")
@config_option
@socket_option
@click.option("--once", is_flag=True, help="Show one measurement and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document per measurement and line.")
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=Seconds(),
    default=1.0,
    show_default=True,
    help="Time between two measurements, 0.2 to 300.",
)
@click.option(
    "--by",
    "group",
    type=click.Choice(GROUPS),
    default="flow",
    show_default=True,
    help="What one row stands for.",
)
@click.option(
    "--sort",
    type=click.Choice(tuple(SORTS)),
    default="rate",
    show_default=True,
    help="What rows are ordered by; tx and rx are rates.",
)
@click.option(
    "--filter",
    "filter_text",
    metavar="TEXT",
    default="",
    help="Only rows with all these words in process, PID, service or destination.",
)
@click.option(
    "--limit",
    metavar="ROWS",
    type=click.IntRange(1, 20_000),
    help="At most this many rows (default: what fits, 50 into a pipe, all as JSON).",
)
def top(config_file: Path | None, socket_path: str | None, **options: Any) -> int:
    """Show live traffic by process and destination; needs root.

    A client of the running agent; without one it watches the kernel itself while it runs.

    \b
    Examples:
      kernob top
      kernob top --by service --sort tx
      kernob top --filter postgres
      kernob top --once --json | jq '.rows[0]'
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.top import run_top

    options["sort"] = SORTS[options["sort"]]
    return run_top(settings, start_agent=_start_agent, **options)
