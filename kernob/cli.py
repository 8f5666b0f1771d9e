# SPDX-License-Identifier: Apache-2.0
"""The `kernob` command: options enter, an exit code leaves; what a command does stands elsewhere.

Everything but click is imported by the command that needs it: `kernob top --help` loads neither gRPC nor
numpy, and a client of a running agent never loads what only the agent needs.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from kernob import __version__
from kernob.cli_options import GROUPS, KINDS, SORTS, Seconds, Since, config_option, socket_option
from kernob.errors import ConfigError, KernobError

if TYPE_CHECKING:
    from kernob.agent import Agent
    from kernob.config import Settings
    from kernob.model import DoctorReport, Event, EventQuery
    from kernob.view import View

EXIT_USAGE = ConfigError.exit_code
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits(3)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

EXIT_CODES = f"""\b
Exit codes:
  0    done
  1    failed for a reason the message names, or the reader of the output left
  2    an option or setting is unknown, malformed or out of range
  3    something is missing before anything attached: root, bpf, BCC
  4    no agent could be reached
  5    the kernel refused something that is needed
  {EXIT_FAULT}   a fault in Kernob itself
  {EXIT_INTERRUPTED}  interrupted
"""


def _settings(config_file: Path | None, socket_path: str | None = None, *, quiet: bool = False) -> Settings:
    """Load the settings, and log as they say from here on; `quiet`: warnings only, unless they say more."""
    from kernob import log
    from kernob.config import load_settings

    overrides = {} if socket_path is None else {"socket_path": socket_path}
    settings = load_settings(os.environ, config_file, overrides)
    by_default = settings.origin["log_level"] == "default"
    log.set_up("warning" if quiet and by_default else settings.log_level, sys.stderr, os.environ)
    return settings


class _EndedError(BaseException):
    """A signal came before the agent. Not an Exception: nothing may mistake it for a failure."""


def _end(_number: int, _frame: FrameType | None) -> None:
    raise _EndedError


@click.group(
    epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="kernob %(version)s")
def kernob() -> None:
    """Which process sends how many bytes to whom: live on this screen, and as OTLP.

    \b
    Examples:
      kernob top
      kernob events --since 2h
      kernob top --once --json
      OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 kernob run
    """


@kernob.command(epilog=EXIT_CODES, short_help="The agent: watch, and send OTLP metrics.")
@config_option
@click.option(
    "--otlp-file",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Also write every export to this file, as OTLP JSON lines.",
)
def run(config_file: Path | None, otlp_file: Path | None) -> int:
    """Watch the kernel and send OTLP metrics until SIGTERM or Ctrl-C; needs root.

    Ends within 3 seconds of either, after a last export, with exit code 0.

    \b
    Examples:
      kernob run
      OTEL_EXPORTER_OTLP_ENDPOINT=https://collector:4318 kernob run
      OTEL_METRICS_EXPORTER=none kernob run --otlp-file /tmp/metrics.jsonl
      KERNOB_SCRAPE_INTERVAL=1 kernob run --config ./kernob.toml
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)  # until the agent takes them over
    try:
        settings = _settings(config_file)
        # numpy's library would start threads for arithmetic that Kernob never does
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from kernob.agent import run_agent

        return run_agent(settings, otlp_file)
    except _EndedError:
        return 0


@kernob.command(epilog=EXIT_CODES, short_help="Live traffic by process and destination.")
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
    settings = _settings(config_file, socket_path, quiet=True)
    from kernob.ui.top import run_top

    options["sort"] = SORTS[options["sort"]]
    return run_top(settings, start_agent=_start_agent, **options)


@kernob.command(epilog=EXIT_CODES, short_help="What happened to connections, and when.")
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
    settings = _settings(config_file, socket_path, quiet=True)
    from kernob.ui.events import run_events

    options["kinds"] = tuple(KINDS[kind] for kind in options["kinds"])
    return run_events(settings, read_store=_read_store, **options)


def _read_store(directory: Path, query: EventQuery) -> Iterator[list[Event]]:
    """Read events where no agent runs."""
    from kernob.state.history import read

    return ([event for _number, event in page] for page in read(directory, query))


def _start_agent(settings: Settings) -> Agent:
    """Make the agent of a screen that found none running. Raises PreconditionError where none can be."""
    from kernob.agent import Agent

    return Agent(settings)


def _examine(settings: Settings, running: View | None) -> DoctorReport:
    """Look around for the doctor's screen."""
    from kernob.examine import examine

    return examine(settings, running)


@kernob.command(epilog=EXIT_CODES, short_help="What this kernel offers, and what is missing.")
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
    settings = _settings(config_file, socket_path, quiet=True)
    from kernob.ui.doctor import run_doctor

    return run_doctor(settings, as_json, _examine)


@kernob.command(epilog=EXIT_CODES, short_help="Whether the agent is well: for a health check.")
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
            socket_path = os.fspath(_settings(config_file, socket_path).socket_path)
        except KernobError as error:
            return _fail(str(error), KernobError.exit_code, error)
    return run_health(socket_path)


@kernob.command(epilog=EXIT_CODES, short_help="Every setting and where it came from.")
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
    settings = _settings(config_file)
    from kernob.ui import settings as screen

    click.echo(screen.as_json(settings) if as_json else screen.as_table(settings))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure is one line on standard error."""
    _open_standard_streams()
    try:
        code = kernob.main(args=arguments, prog_name="kernob", standalone_mode=False)
        sys.stdout.flush()
    except KernobError as error:
        return _fail(str(error), error.exit_code, error)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "kernob"
        return _fail(f"{error.format_message()} ('{command} --help' lists all)", EXIT_USAGE, error)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code, error)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except OSError as error:
        return _fail_to_write(error)
    except Exception as error:
        return _fail_by_fault(error)
    return code if isinstance(code, int) else 0


def _open_standard_streams() -> None:
    """Replace streams that were closed by the caller: the next file opened would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _fail_to_write(error: OSError) -> int:
    """Say that standard output is full; nothing where its reader left, for nobody is left to tell."""
    is_full = error.errno == errno.ENOSPC and error.filename is None
    if not is_full and not isinstance(error, BrokenPipeError):
        return _fail_by_fault(error)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it does not fail again
    if is_full:
        return _fail(f"cannot write the output: {error.strerror}", KernobError.exit_code, error)
    return KernobError.exit_code


def _fail_by_fault(error: Exception) -> int:
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _fail(f"{what} (a fault in Kernob; KERNOB_LOG_LEVEL=debug shows where)", EXIT_FAULT, error)


def _fail(message: str, code: int, error: Exception) -> int:
    from kernob.log import one_line

    if logging.getLogger("kernob").isEnabledFor(logging.DEBUG) or _debug_asked():
        traceback.print_exception(error)
    click.echo(f"kernob: {one_line(message)}", err=True)
    return code


def _debug_asked() -> bool:
    """Whether the environment asks for tracebacks, also of what failed before settings were loaded."""
    return os.environ.get("KERNOB_LOG_LEVEL", "").strip().lower() == "debug"
