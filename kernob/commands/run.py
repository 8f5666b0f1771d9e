# SPDX-License-Identifier: Apache-2.0
"""`kernob run`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

import click

from kernob.commands.base import EXIT_CODES, load
from kernob.commands.options import config_option


def _end(_number: int, _frame: FrameType | None) -> None:
    """Nothing is attached yet: there is nothing to take back.

    An exception would not do. Raised while something is imported it may be lost, and the agent would run on.
    """
    os._exit(0)


@click.command(epilog=EXIT_CODES, short_help="The agent: watch, and send OTLP metrics.")
@config_option
@click.option(
    "--otlp-file",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Also write every export to this file, as OTLP JSON lines.",
)
def run(config_file: Path | None, otlp_file: Path | None) -> int:
    """Watch the kernel and send OTLP metrics until SIGTERM or Ctrl-C; needs root.

    Ends within 3 seconds of either, after a last export, with exit code 0; within 8 where that export is
    large and the endpoint goes on taking it.

    \b
    Examples:
      kernob run
      OTEL_EXPORTER_OTLP_ENDPOINT=https://collector:4318 kernob run
      OTEL_METRICS_EXPORTER=none kernob run --otlp-file /tmp/metrics.jsonl
      KERNOB_SCRAPE_INTERVAL=1 kernob run --config ./kernob.toml
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)  # until the agent takes them over
    settings = load(config_file)
    from kernob.agent import run_agent

    return run_agent(settings, otlp_file)
