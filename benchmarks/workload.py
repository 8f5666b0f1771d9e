# SPDX-License-Identifier: Apache-2.0
"""Workload programs: compiled when needed, run, measured.

In: C files of benchmarks/workloads. Out: Result per run. Called by every benchmark. Traffic stays on
the loopback interface.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kernob.errors import PreconditionError

_SOURCES = Path(__file__).with_name("workloads")
_NICENESS = -20
CPU = 0
"""Both ends of a workload are pinned to one CPU: a wake-up on another one costs more than the rest."""


@dataclass(frozen=True, slots=True)
class Result:
    """One run: operations, the time they took, CPU time of all its processes (set-up included)."""

    operations: int
    wall_ns: int
    cpu_ns: int

    @property
    def wall_each_ns(self) -> float:
        """Nanoseconds of wall time an operation."""
        return self.wall_ns / self.operations

    @property
    def cpu_each_ns(self) -> float:
        """Nanoseconds of CPU an operation."""
        return self.cpu_ns / self.operations


class Workloads:
    """Compiles into a temporary directory, which goes away with the context."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kernob-bench-")
        self._built: dict[str, Path] = {}

    def __enter__(self) -> Workloads:
        if not shutil.which("gcc"):
            raise PreconditionError(
                "the benchmarks need gcc for their workloads: apt-get install gcc libc6-dev"
            )
        if os.geteuid() != 0:
            raise PreconditionError("the benchmarks load programs into the kernel: run them as root")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._directory.cleanup()

    @property
    def directory(self) -> Path:
        """Where a benchmark may put files of its own; removed at the end."""
        return Path(self._directory.name)

    def program(self, name: str, *options: str) -> Path:
        """Path of a compiled workload. Raises PreconditionError with the compiler's words."""
        if name not in self._built:
            target = self.directory / name
            command = ["gcc", "-O2", "-Wall", *options, "-o", str(target), str(_SOURCES / f"{name}.c")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PreconditionError(f"{name}.c does not compile: {done.stderr.strip()}")
            self._built[name] = target
        return self._built[name]

    @contextmanager
    def holding(self, connections: int, period_ms: int) -> Iterator[None]:
        """Open connections as long as the context lasts; see connections.c. RuntimeError when it fails."""
        command = [str(self.program("connections")), str(connections), str(period_ms)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout
            try:
                if not holder.stdout.readline():
                    raise RuntimeError(f"{connections} connections cannot be held")
                yield
            finally:
                holder.communicate()

    def run(self, name: str, *arguments: int) -> Result:
        """Runs one to its end at high priority. Raises RuntimeError when it fails."""
        # ahead of whatever else the machine does, but not real-time
        command = ["nice", "-n", str(_NICENESS), str(self.program(name)), *map(str, arguments)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout
        output = child.stdout.read()
        _pid, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        child.stdout.close()
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
        operations, wall_ns = map(int, output.split())
        return Result(operations, wall_ns, int((usage.ru_utime + usage.ru_stime) * 1e9))
