# SPDX-License-Identifier: Apache-2.0
"""Probes on C libraries take descriptors: how many there may be, and that enough stay for all else."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernob.kernel.libraries import Libraries
from kernob.kernel.programs import Program

LIMIT = """
import resource
from kernob.kernel.session import lift_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
print(lift_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("hard", [200, 64])
def test_a_process_opens_as_many_files_as_it_may(hard: int) -> None:
    """The soft limit, 1,024 for every service, becomes the hard one."""
    done = subprocess.run(
        [sys.executable, "-c", LIMIT.format(hard=hard)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(hard)] * 3


def test_libraries_leave_half_of_the_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 12 files may be open, 3 libraries of 2 probes are probed; the other 2 are refused, and said."""
    found = re.search(
        r"(/\S*/(?:libc\.so\.6|ld-musl-\S+))", Path("/proc/self/maps").read_text(encoding="utf-8")
    )
    assert found, "this interpreter has no C library of its own"
    folder = tmp_path / "7"
    lines = []
    for number in range(5):
        path = folder / "root" / f"lib{number}" / "libc.so.6"
        path.parent.mkdir(parents=True)
        shutil.copyfile(found[1], path)
        inode = path.stat().st_ino
        lines.append(f"7f0{number}-7f1{number} r-xp 00000000 fe:01 {inode}   /lib{number}/libc.so.6\n")
    (folder / "maps").write_text("".join(lines))
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (12, 12))
    opened: list[int] = []

    def prober(*_: object) -> int:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        return opened[-1]

    program = Program("p", -1)
    libraries = Libraries(tmp_path, {"getaddrinfo": (program, program)}, prober)
    libraries.scan()
    try:
        assert (len(libraries.paths), len(opened), libraries.refused) == (3, 6, 2)
        assert libraries.why.endswith("3 libraries are probed already")
    finally:
        libraries.close()
