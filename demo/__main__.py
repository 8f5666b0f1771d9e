# SPDX-License-Identifier: Apache-2.0
"""`python -m demo`: see `--help`. Everything it makes is gone at its end, however that comes."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from compose.project import StackError

from . import audit, business, stack
from .owned import BrokenError, Owned, remove_remains
from .runner import Runner
from .screen import Screen
from .stories import STORIES
from .story import Story, choose, closing, judge

EXIT_FAILED, EXIT_USAGE, EXIT_BROKEN, EXIT_INTERRUPTED = 1, 2, 3, 130
PREFIX = "kernob-demo-"
LOCK = Path(tempfile.gettempdir(), "kernob-demo.lock")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with one line if it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="A small business, faults in it, and what Kernob says of each, checked.",
        epilog="Needs root, a Docker engine, and what `demo/install.sh` installs. Exit codes: 0 all as it "
        "must be, 1 a story is not, 2 usage, 3 the demo itself could not go on.",
    )
    parser.add_argument(
        "--fast", action="store_true", help="no Grafana, no pauses, stories beside each other: for machines"
    )
    parser.add_argument("--no-fault", action="store_true", help="inject nothing: every story must fail")
    parser.add_argument("--only", metavar="STORY", action="append", default=[], help="may be repeated")
    parser.add_argument("--keep", action="store_true", help="leave it running afterwards, until Ctrl-C")
    parser.add_argument("--list", action="store_true", help="name the stories, and end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; its exit code."""
    options = parse(arguments)
    screen = Screen()
    if options.list:
        for story in STORIES:
            screen.line(f"{story.name:<10} {story.title}")
        return 0
    try:
        chosen = choose(STORIES, options.only)
        ready()
    except (ValueError, BrokenError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return EXIT_USAGE if isinstance(error, ValueError) else EXIT_BROKEN
    for number in (signal.SIGINT, signal.SIGTERM):  # also where whoever started it ignores the first
        signal.signal(number, interrupt)
    try:
        with alone():
            return run(options, chosen, screen)
    except (BrokenError, StackError, TimeoutError) as error:
        screen.line(f"demo: {error}")
        return EXIT_BROKEN
    except KeyboardInterrupt:
        screen.line("interrupted; everything is taken down")
        return EXIT_INTERRUPTED


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Ctrl-C, or SIGTERM."""
    raise KeyboardInterrupt


def ready() -> None:
    """BrokenError, in one line, where something is missing."""
    if os.geteuid():
        raise BrokenError("needs root: it makes network namespaces and mounts")
    if not shutil.which("docker"):
        raise BrokenError("no docker here; `tests/stack/engine.sh start` installs and starts one")
    if packages := business.missing():
        raise BrokenError(f"missing here: {' '.join(packages)}; `sh demo/install.sh` installs them")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No other demo on this machine."""
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BrokenError(f"another demo is under way ({LOCK})") from None
        yield


def run(options: argparse.Namespace, chosen: Sequence[Story], screen: Screen) -> int:
    """Bring everything up, tell the stories, take it down; the exit code."""
    began_s = time.monotonic()
    remove_remains(os.path.join(tempfile.gettempdir(), PREFIX))  # noqa: PTH118 a prefix is no path
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as directory:
        place = Path(directory)
        place.chmod(0o755)  # servers with users of their own live below
        packages = not stack.registry_answers()
        screen.doing(f"images{' from packages: no registry answers' if packages else ''}")
        stack.build(packages)
        running = stack.prepare(place, packages, screen.doing)
        with Owned(place) as owned:
            running.down(volumes=True)
            owned.later(running.down, True)
            firm = business.Business(owned, place)
            runner = Runner(firm, running, screen, faulty=not options.no_fault)
            runner.bring_up(stack.QUIET if options.fast or packages else ())
            began_stories_s = time.monotonic()
            pause_s = 0 if options.fast or not screen.is_terminal else 5
            outcomes = runner.tell(chosen, pause_s, beside=options.fast)
            good = all(judge(each, not options.no_fault).good for each in outcomes)
            if not options.no_fault and not options.only:
                metrics = audit.ask(running.victoria)
                screen.line(screen.paint(metrics.line, "green" if metrics.good else "red"))
                good = good and metrics.good
            took_s = time.monotonic() - began_s
            screen.line(f"   ({began_stories_s - began_s:.0f} s of them to bring it all up)")
            if options.keep:
                runner.keep()
        line = closing(outcomes, not options.no_fault, took_s)
        screen.line(screen.paint(line, "green" if good else "red"))
    return 0 if good else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
