# SPDX-License-Identifier: Apache-2.0
"""`kernob lifecycle`."""

from __future__ import annotations

from pathlib import Path

import click

from kernob.commands.base import EXIT_CODES, load
from kernob.commands.options import config_option, socket_option


@click.command(epilog=EXIT_CODES, short_help="Which programs came and went, and which crash again and again.")
@config_option
@socket_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/lifecycle.md).")
@click.option(
    "--limit",
    metavar="ROWS",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="At most so many programs, and so many ends.",
)
def lifecycle(config_file: Path | None, socket_path: str | None, *, as_json: bool, limit: int) -> int:
    """Show crash loops that go on, how programs started and ended, and the newest ends that were told.

    Asks the running agent; counts are since it started.

    \b
    Examples:
      kernob lifecycle
      kernob lifecycle --limit 100
      kernob lifecycle --json | jq '.crash_loops'
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.lifecycle import run_lifecycle

    return run_lifecycle(settings.socket_path, limit, as_json=as_json)
