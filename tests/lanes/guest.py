# SPDX-License-Identifier: Apache-2.0
"""One run of a guest: hand over the project and a command, boot, follow the console, take the results back.

Enters: disks, a command, its environment, time limits. Leaves: the command's exit code, a results directory.
Called by __main__.py. A guest that did not boot, or gave no exit code, is a LaneError: never a quiet skip.
"""

from __future__ import annotations

import io
import os
import select
import shlex
import subprocess
import tarfile
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import host
from .errors import LaneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HERE = Path(__file__).parent
RESULTS_BYTES = 256 * 2**20
PACKAGES_IN_GUEST = "/opt/python-packages"
PROJECT_IN_GUEST = "/lane/project"
RESULTS_IN_GUEST = "/lane/results"
LAST_WORDS_S = 45.0  # between the command's interruption in the guest and the end of the host's patience
SILENCE_S = 60.0  # after this long without a line the host says that the guest still runs
# la57 only makes every emulated page walk longer; with emulated AVX2 numpy's sorting ends Python by SIGSEGV
# now and then; mitigations guard nothing in a throw-away guest.
PROCESSOR = "max,la57=off,avx2=off"
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 mitigations=off fsck.mode=skip root=/dev/vda rw init=/usr/sbin/lane-init"
)


@dataclass(frozen=True)
class Job:
    """What to run and within which bounds. Times in seconds, memory in MiB. `given`: a directory."""

    command: Sequence[str]
    environment: Mapping[str, str]
    boot_limit_s: float
    limit_s: float
    memory_mib: int
    processors: int
    given: Path | None = None


@dataclass
class Console:
    """What the guest said so far."""

    started_s: float
    lines: list[str] = field(default_factory=list)
    is_up: bool = False

    def take(self, line: str) -> bool:
        """Note one line; return whether it is worth showing."""
        self.lines.append(line)
        self.is_up = self.is_up or line.startswith("@lane up ")
        return not line.startswith("@lane done ")


def guest_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the command in the guest; `extra` wins.

    Nothing of it begins with KERNOB_: kernob refuses settings that it does not know.
    """
    return {
        "PATH": f"{PROJECT_IN_GUEST}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONPATH": f"{PROJECT_IN_GUEST}:{PACKAGES_IN_GUEST}",
        "LANE_RESULTS": RESULTS_IN_GUEST,
        **extra,
    }


def project_files(project: Path) -> list[str]:
    """Return the project's files as git knows them, changed and new ones included, ignored ones not."""
    listing = host.output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=project
    )
    return sorted({name for name in listing.split("\0") if name and (project / name).is_file()})


def write_payload(path: Path, project: Path, job: Job) -> None:
    """Write the archive that the guest unpacks: project, command, environment, start.sh."""
    exports = [
        f"export {name}={shlex.quote(value)}\n" for name, value in guest_environment(job.environment).items()
    ]
    with tarfile.open(path, "w") as archive:
        for name in project_files(project):
            archive.add(project / name, f"project/{name}", recursive=False)
        if job.given:
            archive.add(job.given, f"results/{job.given.name}")
        archive.add(HERE / "guest/start.sh", "start.sh")
        archive.add(HERE / "guest/kernob", "project/.venv/bin/kernob")
        texts = {
            "environment": "".join(exports),
            "command.sh": f"exec {shlex.join(job.command)}\n",
            "limit": f"{max(1, job.limit_s - LAST_WORDS_S):.0f}\n",
        }
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def run(
    job: Job,
    project: Path,
    system: Path,
    headers: Path | None,
    scratch: Path,
    results: Path,
    say: Callable[[str], None],
) -> int:
    """Boot, run the job, fill the empty directory `results`; return the command's exit code.

    Raises LaneError if the guest did not boot in time, ran out of time, or gave no exit code.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        work = Path(name)
        payload, returned = work / "payload.tar", work / "results.tar"
        write_payload(payload, project, job)
        with returned.open("wb") as handle:
            handle.truncate(RESULTS_BYTES)
        disks = [("root", system / "root.ext4", "snapshot=on"), ("payload", payload, "readonly=on")]
        disks.append(("results", returned, "cache=unsafe"))
        if headers is not None:
            disks.append(("headers", headers / "headers.ext4", "readonly=on"))
        argv = qemu_command(system, disks, job)
        console = follow(argv, job, work, say, results / "console.log")
        code = unpack_results(returned, work, results)
    if code is None:
        raise LaneError(explain(console, "ended without an exit code", results))
    return code


def qemu_command(system: Path, disks: Sequence[tuple[str, Path, str]], job: Job) -> list[str]:
    """Return the emulator's arguments; `disks` are (serial number, file, options), the root disk first."""
    argv = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", PROCESSOR]
    argv += ["-smp", str(job.processors), "-m", str(job.memory_mib), "-nodefaults", "-no-reboot"]
    argv += ["-display", "none", "-serial", "stdio", "-monitor", "none"]
    argv += [
        "-kernel",
        str(system / "vmlinuz"),
        "-initrd",
        str(system / "initrd"),
        "-append",
        KERNEL_ARGUMENTS,
    ]
    for serial, path, options in disks:
        quoted = str(path).replace(",", ",,")
        argv += ["-drive", f"if=none,id={serial},format=raw,file={quoted},{options}"]
        argv += ["-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
    return argv


def follow(argv: Sequence[str], job: Job, work: Path, say: Callable[[str], None], log: Path) -> Console:
    """Run the emulator to its end within the job's bounds, passing its console on line by line."""
    console = Console(started_s=time.monotonic())
    environ = {**os.environ, "TMPDIR": str(work)}  # the changes to the root disk land here
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environ,
        start_new_session=True,
    )
    try:
        with log.open("w") as sink:
            for line in _lines(process, console, job, log.parent):
                if line is None:
                    say(f"still running, {time.monotonic() - console.started_s:.0f} s")
                    continue
                sink.write(line + "\n")
                sink.flush()
                if console.take(line):
                    say(line)
        with suppress(subprocess.TimeoutExpired):  # it has closed its output, so it is about to end
            process.wait(timeout=10)
    finally:
        host.end_group(process)
    if not console.is_up:
        raise LaneError(
            explain(console, f"did not boot; the emulator ended with {process.returncode}", log.parent)
        )
    return console


def _lines(
    process: subprocess.Popen[bytes], console: Console, job: Job, results: Path
) -> Iterator[str | None]:
    """Yield the console's lines, None after each long silence; raise LaneError when a bound is passed."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    pending = b""
    heard_s = time.monotonic()
    while True:
        now_s = time.monotonic()
        spent_s = now_s - console.started_s
        if not console.is_up and spent_s > job.boot_limit_s:
            raise LaneError(explain(console, f"did not boot within {job.boot_limit_s:.0f} s", results))
        if spent_s > job.limit_s:
            raise LaneError(explain(console, f"did not finish within {job.limit_s:.0f} s", results))
        if now_s - heard_s > SILENCE_S:
            heard_s = now_s
            yield None
        readable, _, _ = select.select([descriptor], [], [], 1.0)
        if not readable:
            continue
        data = os.read(descriptor, 65536)
        heard_s = time.monotonic()
        *complete, pending = (pending + data).split(b"\n")
        for raw in complete:
            yield raw.decode(errors="replace").rstrip("\r")
        if not data:
            if pending:
                yield pending.decode(errors="replace").rstrip("\r")
            return


def unpack_results(archive: Path, work: Path, results: Path) -> int | None:
    """Unpack what the guest wrote; return its exit code, or None if it wrote none."""
    unpacked = work / "unpacked"
    unpacked.mkdir()
    # A disk never written to is an empty archive; a full one is cut off, but its first member is there.
    subprocess.run(
        ["tar", "-xf", str(archive), "-C", str(unpacked), "--no-same-owner"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if (unpacked / "results").is_dir():
        for path in (unpacked / "results").iterdir():
            path.rename(results / path.name)
    try:
        return int((unpacked / "exit-code").read_text())
    except (FileNotFoundError, ValueError):
        return None


def explain(console: Console, what: str, results: Path) -> str:
    """Return one line: what went wrong, and the reason if the guest named one."""
    panics = [line for line in console.lines if "Kernel panic" in line]
    reason = f" ({panics[0].strip()})" if panics else "" if console.lines else " (it said nothing)"
    return f"the guest {what}{reason}; its console is in {results / 'console.log'}"
