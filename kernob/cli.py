# SPDX-License-Identifier: Apache-2.0
"""The `kernob` command: arguments enter, an exit code leaves; every failure is one line on standard error."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from kernob import __version__
from kernob.commands import COMMANDS
from kernob.commands.base import EXIT_CODES, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USAGE
from kernob.errors import KernobError


@click.group(
    epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="kernob %(version)s")
def kernob() -> None:
    """What the kernel sees of your services, live on this screen and as OTLP.

    Which process sends how many bytes to whom, what fails and why, how well each destination serves, where
    the time goes in system calls, what crashes again and again, who talks to whom. No application is touched.

    \b
    Examples:
      kernob top                     # bytes, by process and destination
      kernob scores                  # destinations, worst first
      kernob events --since 2h       # what failed, to the millisecond
      kernob lifecycle               # what crashes, starts, ends
      kernob syscalls --bars         # where the time goes
      kernob map --format html       # who talks to whom
      OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 kernob run
    """


for _command in COMMANDS:
    kernob.add_command(_command)


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
