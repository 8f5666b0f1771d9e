# SPDX-License-Identifier: Apache-2.0
"""What the demo made, and its end: processes, containers, whatever else has a way of being removed.

Enters: commands. Leaves: running processes whose output is in a file. All of it goes with `close`, the last
made first, each by its own id; and also when the demo itself is killed (PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_PDEATHSIG = 1
_END_LIMIT_S = 10.0
_LIBC = ctypes.CDLL(None)


class BrokenError(Exception):
    """The demo itself cannot go on: a program of it did not start, a command failed. One line."""


def sh(*command: str, limit_s: float = 60.0) -> str:
    """Run a command to its end; what it printed. BrokenError with its words if it fails."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=limit_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokenError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise BrokenError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def attempt(*command: str) -> None:
    """Run a command that may fail: what an earlier demo left is removed so."""
    subprocess.run(command, capture_output=True, timeout=60, check=False)


def remove_remains(prefix: str) -> None:
    """Mounts, loop devices, containers and files of a demo that was killed; its paths begin with `prefix`."""
    mounts = [line.split()[:2] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for device, where in reversed(mounts):
        if where.startswith(prefix):
            attempt("umount", where)
            if device.startswith("/dev/loop"):
                attempt("losetup", "--detach", device)
    for identity in sh("docker", "ps", "-aq", "--filter", "label=kernob.demo").split():
        attempt("docker", "rm", "-f", identity)
    for place in Path(prefix).parent.glob(f"{Path(prefix).name}*"):
        shutil.rmtree(place, ignore_errors=True)


def _die_with_parent() -> None:
    _LIBC.prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not leave half of it behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Running:
    """A process of the demo's: `pid` is that of the program itself, `log` what it printed."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def lines(self) -> list[str]:
        """What it has printed so far."""
        return self.log.read_text(errors="replace").splitlines()

    def end(self) -> None:
        """SIGTERM, SIGKILL to what is left of it and of its children after a while."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_LIMIT_S)
        # its session is its own, so this can only meet what it started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Owned:
    """Everything made since `with`; any thread may add to it."""

    def __init__(self, place: Path) -> None:
        """`place` is an existing directory for logs."""
        self.place = place
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Owned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _undisturbed():
            self._stack.close()

    def later(self, undo: Callable[..., object], *arguments: object) -> None:
        """Call it at the end."""
        with self._lock:
            self._stack.callback(undo, *arguments)

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Running:
        """A process in a session of its own; its output goes to `name`.log."""
        log = self.place / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 one system call, no lock
                cwd=cwd,
                env={**os.environ, **(env or {}), "PYTHONUNBUFFERED": "1"},
            )
        running = Running(name, process, log)
        self.later(running.end)
        return running

    def container(self, name: str, image: str, options: Sequence[str], command: Sequence[str]) -> str:
        """A container of this name, replacing one that an earlier demo left; its id."""
        attempt("docker", "rm", "-f", name)
        identity = sh(
            "docker", "run", "-d", "--name", name, "--label", "kernob.demo=1", *options, image, *command
        ).strip()
        self.later(attempt, "docker", "rm", "-f", identity)
        return identity


def wait_until(condition: Callable[[], object], what: str, limit_s: float, every_s: float = 0.2) -> None:
    """Poll until it holds; BrokenError that names `what` if it never does."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise BrokenError(f"{what}: not after {limit_s:.0f} s")
        time.sleep(every_s)
