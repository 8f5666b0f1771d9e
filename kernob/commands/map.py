# SPDX-License-Identifier: Apache-2.0
"""`kernob map` and `kernob destinations`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kernob.commands.base import EXIT_CODES, load
from kernob.commands.options import Since, config_option, socket_option

_DAY_NS = 86_400 * 10**9
CLASSES = ("localhost", "internal", "external", "self-hosted", "unknown")


def _read_map(directory: Path, since_unix_ns: int) -> Mapping[str, Any]:
    """Read the map where no agent runs."""
    from kernob.state.map_history import map_document

    return map_document(directory, since_unix_ns)


def _change_destinations(directory: Path, words: Mapping[str, str]) -> Mapping[str, Any]:
    """List or change the baseline where no agent runs."""
    from kernob.state.map_history import destinations_document

    return destinations_document(directory, words)


@click.command("map", epilog=EXIT_CODES, short_help="Who talks to whom: the service map.")
@config_option
@socket_option
@click.option(
    "--since",
    "since_unix_ns",
    metavar="WHEN",
    type=Since(),
    help="What was seen since: so long ago (2h, 30d), or a local time (default: a day ago).",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(("tree", "dot", "mermaid", "json", "html")),
    default="tree",
    show_default=True,
    help="html is one page that needs nothing else; dot is for Graphviz.",
)
@click.option("--json", "kind", flag_value="json", help="The same as --format json.")
@click.option("--host", metavar="NAME", default="", help="Only edges that touch this host.")
@click.option("--class", "edge_class", type=click.Choice(CLASSES), help="Only edges of this class.")
def map_(config_file: Path | None, socket_path: str | None, **options: Any) -> int:
    """Show who talks to whom, and how much, out of the connections that were seen.

    Asks the running agent; without one it reads what the last one stored.

    \b
    Examples:
      kernob map
      kernob map --class external
      kernob map --since 30d --format html > map.html
      kernob map --format dot | dot -Tsvg > map.svg
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.map import run_map

    if options["since_unix_ns"] is None:
        options["since_unix_ns"] = max(0, time.time_ns() - _DAY_NS)
    options["edge_class"] = options["edge_class"] or ""
    return run_map(settings, read_store=_read_map, **options)


@click.command(epilog=EXIT_CODES, short_help="Which destinations each service is known to talk to.")
@config_option
@socket_option
@click.argument("action", type=click.Choice(("list", "accept", "forget")), default="list")
@click.argument("service", default="")
@click.argument("destination", default="")
@click.option("--port", type=click.IntRange(0, 65535), help="Only this port.")
@click.option(
    "--state", type=click.Choice(("learned", "new", "accepted")), help="Only those that came in so."
)
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON document.")
def destinations(config_file: Path | None, socket_path: str | None, **options: Any) -> int:
    """List the baseline of destinations; accept or forget some of it.

    SERVICE is a service's name, DESTINATION a hostname or address; * and ? stand for any characters. What is
    accepted is as it should be: it alerts no more. What is forgotten is new when it is seen again.

    \b
    Examples:
      kernob destinations
      kernob destinations list --state new
      kernob destinations accept orders.py api.example.com --port 443
      kernob destinations accept backup '*'
      kernob destinations forget orders.py 192.0.2.7
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.destinations import run_destinations

    return run_destinations(settings, change_store=_change_destinations, **options)
