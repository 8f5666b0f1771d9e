# SPDX-License-Identifier: Apache-2.0
"""What the options of `kernob` take: words, and values by the rules of the settings. Part of `commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kernob.model import EVENT_KINDS

# What --sort takes, and what kernob.view calls it.
SORTS = {
    "rate": "rate",
    "tx": "tx_rate",
    "rx": "rx_rate",
    "total": "total",
    "tx-total": "tx_total",
    "rx-total": "rx_total",
    "process": "process",
    "pid": "pid",
    "service": "service",
    "destination": "destination",
    "faults": "faults",
    "score": "score",
}
GROUPS = ("flow", "process", "service", "destination")
# What `kernob syscalls --sort` takes.
SYSCALL_SORTS = ("time", "count", "p99", "max")
# What --kind takes: the last word of each kind of event.
KINDS = {kind.rpartition(".")[2]: kind for kind in EVENT_KINDS}


class Seconds(click.ParamType[float]):
    """A pace in seconds, by the rules of KERNOB_SCRAPE_INTERVAL (click's own ranges let nan pass)."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or end with one line that says what would be valid."""
        from kernob.config_values import Number

        kind = Number(0.2, 300, "a number of seconds")
        try:
            return float(kind.parse(value))
        except ValueError:
            self.fail(f"{value!r} must be {kind.expects}", param, ctx)


class Since(click.ParamType[int]):
    """A moment, as Unix time in ns: so long ago (90s, 10m, 2h, 3d), or a local date and time."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the moment, or end with one line that says what would be valid."""
        from kernob.ui.events import EXPECTED_SINCE, moment

        try:
            return value if isinstance(value, int) else moment(value)
        except ValueError:
            self.fail(f"{value!r} must be {EXPECTED_SINCE}", param, ctx)


config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file to read (default: KERNOB_CONFIG, or /etc/kernob/kernob.toml if it is there).",
)
socket_option = click.option(
    "--socket", "socket_path", metavar="PATH", help="The agent's socket (default: KERNOB_SOCKET)."
)
