# SPDX-License-Identifier: Apache-2.0
"""`kernob events`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernob.commands.base import EXIT_CODES, load
from kernob.commands.options import KINDS, Since, config_option, socket_option

if TYPE_CHECKING:
    from kernob.model import Event, EventQuery


@click.command(epilog=EXIT_CODES, short_help="What happened to connections, and when.")
@config_option
@socket_option
@click.option(
    "--since",
    "since_unix_ns",
    metavar="WHEN",
    type=Since(),
    help="From then on: so long ago (90s, 10m, 2h, 3d), or a local time (02:00, 2026-11-23T02:00).",
)
@click.option(
    "--service", metavar="NAME", default="", help="Only of this service; * and ? stand for any characters."
)
@click.option(
    "--kind", "kinds", type=click.Choice(tuple(KINDS)), multiple=True, help="Only this kind; may be repeated."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document per event and line.")
@click.option(
    "--limit",
    metavar="EVENTS",
    type=click.IntRange(1, 1_000_000),
    help="At most the last so many (default: 100, with --since all).",
)
def events(config_file: Path | None, socket_path: str | None, **options: Any) -> int:
    """Show what happened to connections: refusals, resets, retransmits, drops; with time and process.

    Asks the running agent; without one it reads what the last one stored.

    \b
    Examples:
      kernob events
      kernob events --since 2h --kind reset
      kernob events --service orders.py --follow
      kernob events --since 02:00 --json | jq -r .body
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.events import run_events

    options["kinds"] = tuple(KINDS[kind] for kind in options["kinds"])
    return run_events(settings, read_store=_read_store, **options)


def _read_store(directory: Path, query: EventQuery) -> Iterator[list[Event]]:
    """Read events where no agent runs."""
    from kernob.state.history import read

    return ([event for _number, event in page] for page in read(directory, query))
