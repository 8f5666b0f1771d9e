# SPDX-License-Identifier: Apache-2.0
"""Which failed kernel tests are played again: a session of pytest with a witness of our own making."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KERNEL_TESTS = Path(__file__).resolve().parents[1] / "kernel"

CONFTEST = """
import sys
from collections import Counter
from pathlib import Path
import pytest
from replay import Replays

lacking = Counter()

def pytest_configure(config):
    call = lambda: [] if config.getoption("--alone") else [Counter, lambda: Counter(lacking)]
    config.pluginmanager.register(Replays(Path(__file__).parent / "kernel", call))

def pytest_addoption(parser):
    parser.addoption("--alone", action="store_true")

@pytest.fixture
def miss():
    return lambda: lacking.update(["tcp/some_event"])

@pytest.fixture(scope="session")
def made():
    made.count = getattr(made, "count", 0) + 1
    return made.count
"""

CASES = """
plays = {}

def nth(name):
    plays[name] = plays.get(name, 0) + 1
    return plays[name]

def test_fails_once_with_a_miss(miss, made):
    if nth("once") == 1:
        miss()
        assert made == 0, "the first play"

def test_has_new_fixtures_then(made):
    assert made == 2

def test_fails_always_with_a_miss(miss):
    nth("always")
    miss()
    assert False, "played in vain"

def test_fails_once_without(miss):
    assert nth("without") > 1

def test_passes_with_a_miss(miss):
    nth("passes")
    miss()

def test_plays():
    assert plays == {"once": 2, "always": 3, "without": 1, "passes": 1}
"""


def session(directory: Path, folder: str, *options: str) -> list[str]:
    """The lines of a session over CASES, in a folder of this name."""
    (directory / folder).mkdir()
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / folder / "test_cases.py").write_text(CASES)
    command = [sys.executable, "-m", "pytest", "-rfE", "-p", "no:cacheprovider", "--import-mode=importlib"]
    environment = dict(os.environ, PYTHONPATH=str(KERNEL_TESTS))
    command += ["--rootdir", str(directory), *options, folder]
    done = subprocess.run(
        command, cwd=directory, env=environment, text=True, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout.splitlines()


def failures(lines: list[str]) -> list[str]:
    """Names of the tests that failed, in order."""
    return [line.split("::")[1].split(" ")[0] for line in lines if line.startswith("FAILED ")]


def test_only_what_failed_beside_a_missed_event_is_played_again(tmp_path: Path) -> None:
    """With new fixtures, twice at most; and it is told, with how the plays before had failed."""
    lines = session(tmp_path, "kernel")
    assert failures(lines) == ["test_fails_always_with_a_miss", "test_fails_once_without"]
    assert "2 failed, 4 passed" in lines[-1]
    told = lines[lines.index(next(line for line in lines if "= played again =" in line)) :]
    assert [line for line in told if line.startswith("kernel/test_cases.py::")] == [
        "kernel/test_cases.py::test_fails_once_with_a_miss: tcp/some_event 1",
        "kernel/test_cases.py::test_fails_always_with_a_miss: tcp/some_event 1",
        "kernel/test_cases.py::test_fails_always_with_a_miss: tcp/some_event 1",
    ]
    assert sum("the first play" in line for line in told) >= 1
    assert "kernel tests: 3 played again" in told


def test_other_tests_are_not_played_again(tmp_path: Path) -> None:
    """They load no programs."""
    lines = session(tmp_path, "unit")
    assert failures(lines)[:2] == ["test_fails_once_with_a_miss", "test_has_new_fixtures_then"]
    assert not any("played again" in line for line in lines)


def test_without_a_witness_nothing_is_played_again(tmp_path: Path) -> None:
    """Each failure stays."""
    lines = session(tmp_path, "kernel", "--alone")
    assert failures(lines)[:2] == ["test_fails_once_with_a_miss", "test_has_new_fixtures_then"]
    assert not any("played again" in line for line in lines)
