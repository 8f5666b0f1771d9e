# SPDX-License-Identifier: Apache-2.0
"""Running host programs so that their failure is one clear line and nothing of theirs is left running.

Enters: argument lists. Leaves: their output, or a LaneError with its end. Called by all lane modules.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from .errors import LaneError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TAIL_LINES = 12


def check_ready() -> None:
    """Raise LaneError if this machine cannot build or boot a guest at all."""
    if os.uname().machine != "x86_64":
        raise LaneError(
            f"the guests are amd64 and are built by running amd64 code; this is {os.uname().machine}"
        )
    if os.geteuid() != 0:
        raise LaneError("not root; building a root file system needs it")
    needed = ("qemu-system-x86_64", "mmdebstrap", "mke2fs", "apt-get", "dpkg-deb", "git", "tar")
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        raise LaneError(f"missing on this machine: {', '.join(missing)}; run tests/lanes/install.sh")


def run(argv: Sequence[str], log: Path, *, environ: Mapping[str, str] | None = None) -> None:
    """Run a program to its end, its output appended to `log`.

    Raises LaneError with the log's end if the program fails; ends it if this program is to end.
    """
    with log.open("ab") as sink:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=None if environ is None else {**os.environ, **environ},
            start_new_session=True,
        )
        try:
            status = process.wait()
        except BaseException:
            end_group(process)
            raise
    if status != 0:
        lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        raise LaneError(f"{argv[0]} ended with {status}; the end of {log}:\n  " + "\n  ".join(lines))


def output(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    """Return a program's standard output; raise LaneError with its standard error if it fails."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=cwd
    )
    if done.returncode != 0:
        raise LaneError(f"{' '.join(argv[:3])}... ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started in a session of its own, and all it started; wait for it.

    One that was waited for already is left alone: its number may by now be another process's.
    """
    if process.stdout is not None:
        process.stdout.close()
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
