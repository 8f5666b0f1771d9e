# SPDX-License-Identifier: Apache-2.0
"""kernel.privileges: what is given up, by whom, and that it stays given up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kernob.errors import MapError
from kernob.kernel import privileges
from kernob.kernel.privileges import KEPT, confined

ROOT = Path(__file__).parents[2]
KEPT_BITS = 1 << 2 | 1 << 19


def status(field: str, who: str = "thread-self") -> int:
    for line in Path(f"/proc/{who}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1], 16)
    raise AssertionError(field)


def run(script: str) -> str:
    """Run it in a process of its own: what that gives up is gone."""
    # numpy's library would start threads before anybody could give anything up
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1")
    source = f"from tests.unit.test_privileges import *\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def forbidden() -> None:
    raise MapError("map losses: batch read") from PermissionError(1, "Operation not permitted")


def test_only_the_confined_thread_and_what_it_starts_lose_them() -> None:
    """The caller keeps what it has; a thread started inside has no more than the one inside."""
    before = status("CapPrm")

    def look() -> list[int]:
        found = [status(field) for field in ("CapPrm", "CapEff", "CapInh", "NoNewPrivs")]
        inner = threading.Thread(target=lambda: found.append(status("CapPrm")))
        inner.start()
        inner.join()
        return found

    held = before & KEPT_BITS
    assert confined(look) == [held, held, 0, 1, held]
    assert confined(look, ())[0] == 0
    assert (status("CapPrm"), status("NoNewPrivs")) == (before, 0)


def test_what_the_work_raises_reaches_the_caller() -> None:
    """As if it had been called directly, whatever it is."""

    def fail() -> None:
        raise KeyboardInterrupt("x")

    with pytest.raises(KeyboardInterrupt, match="x"):
        confined(fail)


@pytest.mark.skipif(os.geteuid() != 0, reason="missing feature: root")
def test_what_is_dropped_does_not_come_back() -> None:
    """Not by capset, and not by starting another program, although the user is still root."""
    assert run("print(privileges.drop(lambda: None))") == repr(KEPT)
    child = "subprocess.run(['grep', '-E', 'Cap(Prm|Eff|Bnd)|NoNew', '/proc/self/status'])"
    words = run(f"privileges.drop(lambda: None); {child}").split()
    assert [int(word, 16) for word in words[1::2]] == [KEPT_BITS, KEPT_BITS, KEPT_BITS, 1]


@pytest.mark.skipif(os.geteuid() != 0, reason="missing feature: root")
def test_where_maps_cannot_be_read_without_it_cap_bpf_stays() -> None:
    """As before Linux 5.19; before 5.8, which has no CAP_BPF, that is CAP_SYS_ADMIN."""
    assert run("print(privileges.drop(forbidden))") == repr((*KEPT, "CAP_BPF"))
    older = "privileges._highest = lambda: 37\n"
    assert run(f"{older}print(privileges.drop(forbidden))") == repr((*KEPT, "CAP_SYS_ADMIN"))


def test_another_failure_of_the_trial_is_not_taken_for_a_missing_capability() -> None:
    """It is the caller's to know."""
    script = (
        "try:\n    privileges.drop(lambda: 1 / 0)\nexcept ZeroDivisionError:\n    print(status('NoNewPrivs'))"
    )
    assert run(script) == "0"


@pytest.mark.skipif(os.geteuid() != 0, reason="missing feature: root")
def test_a_thread_that_was_forgotten_is_named() -> None:
    """A thread started before keeps everything; that must not pass in silence."""
    script = (
        "import logging\nlogging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "hold = threading.Event()\n"
        "other = threading.Thread(target=hold.wait)\nother.start()\n"
        "privileges.drop(lambda: None)\n"
        "hold.set()\nother.join()\n"
        "import time\nsoon = time.monotonic() + 20\n"  # join() is early by a moment
        "while privileges.threads_beyond(KEPT_BITS) and time.monotonic() < soon: time.sleep(0.01)\n"
        "print(privileges.threads_beyond(KEPT_BITS))"
    )
    said, left = run(script).splitlines()
    assert said.startswith("capabilities stay with python")
    assert left == "()"


def test_a_refusal_says_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel or security module that says no is an OSError with its reason."""

    class Refusing:
        @staticmethod
        def prctl(*_: int) -> int:
            return 0

        @staticmethod
        def capset(*_: object) -> int:
            return -1

    monkeypatch.setattr(privileges, "_libc", Refusing)
    with pytest.raises(OSError, match="giving up capabilities: "):
        confined(lambda: None)
