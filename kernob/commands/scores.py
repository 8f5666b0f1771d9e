# SPDX-License-Identifier: Apache-2.0
"""`kernob scores` and `kernob score`."""

from __future__ import annotations

from pathlib import Path

import click

from kernob.commands.base import EXIT_CODES, load
from kernob.commands.options import Seconds, config_option, socket_option


@click.command(epilog=EXIT_CODES, short_help="How well destinations serve, worst first.")
@config_option
@socket_option
@click.option("--watch", "watch_s", metavar="SECONDS", type=Seconds(), help="Again every so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; with --watch one a line.")
@click.option("--limit", metavar="ROWS", type=click.IntRange(1, 1000), default=40, show_default=True)
def scores(
    config_file: Path | None, socket_path: str | None, watch_s: float | None, limit: int, *, as_json: bool
) -> int:
    """Score what services here depend on: from 0 to 1, with the commonest reason of failure.

    \b
    Examples:
      kernob scores
      kernob scores --watch 2
      kernob scores --json | jq '.dependencies[] | select(.score.composite < 0.9)'
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.scores import run_scores

    return run_scores(settings, as_json=as_json, watch_s=watch_s, limit=limit)


@click.command(epilog=EXIT_CODES, short_help="How a destination's score comes about.")
@config_option
@socket_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.argument("host", metavar="HOST[:PORT]")
def score(config_file: Path | None, socket_path: str | None, host: str, *, as_json: bool) -> int:
    """Explain the scores of a destination: inputs, weights, each dimension, and what would bring it back.

    \b
    Examples:
      kernob score db.example
      kernob score 10.0.0.9:5432 --json
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.scores import run_score

    return run_score(settings, host, as_json=as_json)
