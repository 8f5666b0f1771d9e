# SPDX-License-Identifier: Apache-2.0
"""Processes that a scenario forks, each with a ledger of its own that comes back through a pipe."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import linux
from truth import Ledger, MissingFeatureError

Result = list[dict[str, Any]]
"""The ledgers of a scenario's processes."""


class Child:
    """A forked process that runs `work(ledger)`; `result()` waits for its ledger.

    `pid` asks for that very process id (clone3); FileExistsError while it is taken.
    """

    def __init__(self, work: Callable[[Ledger], None], pid: int = 0) -> None:
        self.read_fd, write_fd = os.pipe()
        try:
            self.pid = linux.fork_as(pid) if pid else os.fork()
        except OSError:
            os.close(self.read_fd)
            os.close(write_fd)
            raise
        if self.pid == 0:
            os.close(self.read_fd)
            self._live(work, write_fd)
        os.close(write_fd)

    @staticmethod
    def _live(work: Callable[[Ledger], None], write_fd: int) -> None:
        ledger = Ledger()
        status = 0
        try:
            work(ledger)
            report = ledger.as_dict()
        except Exception:
            report, status = {"error": traceback.format_exc()}, 1
        try:
            with os.fdopen(write_fd, "w") as out:
                out.write(json.dumps(report) + "\n")
        finally:  # whatever happens, this copy of the caller ends here
            os._exit(status)

    def result(self) -> dict[str, Any]:
        """The child's ledger, after its end; raises RuntimeError with the child's traceback."""
        with os.fdopen(self.read_fd) as source:
            text = source.readline()  # not to the end: a grandchild may hold the pipe open
        try:
            _, how = os.waitpid(self.pid, 0)
        except ChildProcessError:  # a caller that waits for any child met it first
            how = -1
        report = json.loads(text) if text else {"error": f"wait status {how}"}
        if "error" in report:
            raise RuntimeError(f"child {self.pid}: {report['error']}")
        return dict(report)

    def reap(self) -> None:
        """Wait for the end of a child that became another program, whose ledger the caller keeps."""
        os.close(self.read_fd)
        os.waitpid(self.pid, 0)


def fork_child_as(pid: int, work: Callable[[Ledger], None]) -> Child:
    """A child with this very process id; names the feature where the kernel cannot do it."""
    try:
        return Child(work, pid)
    except FileExistsError:
        raise
    except OSError as error:
        raise MissingFeatureError(f"clone3 with set_tid ({error.strerror})") from error


class Gate:
    """Lets processes that fork after its making wait for each other: `open()` here, `wait()` there."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()

    def wait(self) -> None:
        """Block until the gate opens for one waiter."""
        if os.read(self.read_fd, 1) != b"!":
            raise EOFError("the gate was closed")

    def open(self, times: int = 1) -> None:
        """Let `times` waiters through."""
        os.write(self.write_fd, b"!" * times)


def python_copy(directory: Path, name: str) -> tuple[Path, dict[str, str]]:
    """A copy of this interpreter under another name, and the environment it needs to find its library."""
    path = directory / name
    path.write_bytes(Path(sys.executable).resolve().read_bytes())
    path.chmod(0o755)
    return path, dict(os.environ, PYTHONHOME=sys.base_prefix)
