# SPDX-License-Identifier: Apache-2.0
"""The command line of the lanes, called by lane.sh.

Exit code: the command's own, or 125 if the lane itself failed.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import guest, host
from .cache import Cache, default_root
from .errors import LaneError
from .image import SUITES, ImageBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROJECT = Path(__file__).resolve().parents[2]

EPILOG = """\
examples:
  tests/lanes/lane.sh bookworm -- /usr/bin/python3 -m pytest tests/kernel -m lane
  tests/lanes/lane.sh bookworm --env KERNOB_STRATEGIES_OFF=fentry,tp_btf -- kernob doctor
  tests/lanes/lane.sh trixie --headers -- sh -c 'uname -r; ls /usr/src'
  tests/lanes/lane.sh trixie --build-only

exit codes: the command's own; 125 if the guest could not be built or booted, or gave no exit code
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments; `command` is what follows the `--`."""
    parser = argparse.ArgumentParser(
        prog="lane.sh",
        usage="%(prog)s {bookworm,trixie} [options] -- COMMAND...",
        description="Run a command of this project in a stock Debian kernel (6.1 or 6.12) under emulation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", choices=sorted(SUITES), help="Debian release to boot")
    parser.add_argument("--label", help="name that begins each line (the suite)")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="set in the guest; repeatable"
    )
    parser.add_argument("--headers", action="store_true", help="give the guest its kernel's headers")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="replaced by what the guest left in $LANE_RESULTS, its console and dmesg",
    )
    parser.add_argument(
        "--give", type=Path, metavar="DIR", help="is there as $LANE_RESULTS/NAME from the beginning"
    )
    parser.add_argument(
        "--boot-limit",
        type=float,
        default=180.0,
        metavar="S",
        help="seconds to reach user space (%(default)g)",
    )
    parser.add_argument(
        "--limit", type=float, default=1200.0, metavar="S", help="seconds for boot and command (%(default)g)"
    )
    parser.add_argument("--memory", type=int, default=2560, metavar="MIB", help="guest memory (%(default)d)")
    parser.add_argument(
        "--processors", type=int, default=2, metavar="N", help="guest processors (%(default)d)"
    )
    parser.add_argument("--build-only", action="store_true", help="build the image, do not boot")
    parser.add_argument(
        "--refresh", action="store_true", help="build the image anew, with the mirror's current kernel"
    )
    # argparse takes an option of the command for one of its own, so the border is found here.
    border = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:border])
    arguments.command = list(argv[border + 1 :])
    if not arguments.command and not arguments.build_only:
        parser.error("no command: put it after --")
    if wrong := [
        pair for pair in arguments.env if not pair.partition("=")[0].isidentifier() or "=" not in pair
    ]:
        parser.error(f"--env wants NAME=VALUE, not {wrong[0]!r}")
    return arguments


def speaker(label: str) -> Callable[[str], None]:
    """Return a function that prints one line with the lane's name and the seconds since now."""
    started_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{label} {time.monotonic() - started_s:6.1f}s | {text}", flush=True)

    return say


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Build what is missing, run the command; return its exit code. Raises LaneError."""
    host.check_ready()
    cache = Cache(default_root(), say)
    builder = ImageBuilder(SUITES[arguments.suite], PROJECT, cache, say)
    system = builder.system(refresh=arguments.refresh)
    headers = builder.headers(system) if arguments.headers else None
    if arguments.build_only:
        say(f"ready: kernel {(system / 'kernel-release').read_text()} in {system}")
        return 0
    results = (
        arguments.results or cache.scratch("results") / (arguments.label or arguments.suite)
    ).absolute()
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    job = guest.Job(
        command=arguments.command,
        environment=dict(pair.split("=", 1) for pair in arguments.env),
        boot_limit_s=arguments.boot_limit,
        limit_s=arguments.limit,
        memory_mib=arguments.memory,
        processors=arguments.processors,
        given=arguments.give and arguments.give.resolve(strict=True),
    )
    code = guest.run(job, PROJECT, system, headers, cache.scratch("run"), results, say)
    say(f"exit code {code}; results in {results}")
    return code


def catch_signals() -> None:
    """Let SIGTERM and SIGHUP end this program through its finally clauses, so that nothing stays behind."""

    def stop(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)


def main(argv: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    arguments = parse(argv)
    catch_signals()
    say = speaker(arguments.label or arguments.suite)
    try:
        return run(arguments, say)
    except LaneError as error:
        say(f"LANE FAILED: {error}")
        return LaneError.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
