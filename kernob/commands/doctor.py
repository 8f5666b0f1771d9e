# SPDX-License-Identifier: Apache-2.0
"""`kernob doctor`, `kernob health`, `kernob config`: what may be asked of Kernob itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kernob.commands.base import EXIT_CODES, load
from kernob.commands.options import config_option, socket_option
from kernob.errors import KernobError

if TYPE_CHECKING:
    from kernob.config import Settings
    from kernob.model import DoctorReport
    from kernob.view import View


def _examine(settings: Settings, running: View | None) -> DoctorReport:
    """Look around for the doctor's screen."""
    from kernob.examine import examine

    return examine(settings, running)


@click.command(epilog=EXIT_CODES, short_help="What this kernel offers, and what is missing.")
@config_option
@socket_option
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON document.")
def doctor(config_file: Path | None, socket_path: str | None, as_json: bool) -> int:
    """Say what this kernel offers, what is attached, what is missing and how to get it.

    \b
    Examples:
      kernob doctor
      kernob doctor --json | jq '.hooks[] | select(.state != "attached")'
    """
    settings = load(config_file, socket_path, quiet=True)
    from kernob.ui.doctor import run_doctor

    return run_doctor(settings, as_json, _examine)


@click.command(epilog=EXIT_CODES, short_help="Whether the agent is well: for a health check.")
@config_option
@socket_option
def health(config_file: Path | None, socket_path: str | None) -> int:
    """End with 0 where the agent answers on its socket and reads the kernel's counters, else with 1.

    It is well unless its last reading is more than three scrape intervals (and 10 seconds) ago.
    Without options it costs little more than starting Python does, so it may run every few seconds.

    \b
    Examples:
      kernob health
      kernob health --socket /run/kernob/agent.sock || echo not well
    """
    from kernob.health import run_health

    if socket_path is None or config_file is not None:
        try:
            socket_path = os.fspath(load(config_file, socket_path).socket_path)
        except KernobError as error:
            raise KernobError(str(error)) from error  # a health check knows one failure
    return run_health(socket_path)


@click.command(epilog=EXIT_CODES, short_help="Every setting and where it came from.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON document.")
def config(config_file: Path | None, as_json: bool) -> int:
    """Show every setting, its value and where it came from; secrets are masked.

    \b
    Examples:
      kernob config
      KERNOB_SCRAPE_INTERVAL=1 kernob config --json
      kernob config --config ./kernob.toml
    """
    settings = load(config_file)
    from kernob.ui import settings as screen

    click.echo(screen.as_json(settings) if as_json else screen.as_table(settings))
    return 0
