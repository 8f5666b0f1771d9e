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

@pytest.fixture(scope="session")
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

BAD_ENDS = """
import pytest

plays = []

@pytest.fixture(scope="session", params=[RuntimeError, pytest.fail.Exception], ids=["error", "outcome"])
def ends_badly(request):
    yield
    if len(plays) in (1, 3):
        raise request.param("the end is bad")

@pytest.fixture(scope="session")
def both_end_badly(ends_badly):
    yield
    if len(plays) == 3:
        raise RuntimeError("it is")

def test_fails_with_a_miss(miss, both_end_badly):
    plays.append(1)
    miss()
    assert False, "the only play"

def test_passes(both_end_badly):
    plays.append(1)
"""


SCENES = """
import pytest

plays = []

@pytest.fixture(scope="module")
def scene(miss):
    plays.append(1)
    if len(plays) == 1:
        miss()
    return len(plays)

def test_looks_at_what_was_played(scene):
    pass

def test_looks_at_what_was_missed(scene):
    assert scene == 2

def test_looks_at_it_too(scene):
    assert scene == 3, "of this nothing was missed"

def test_looks_at_nothing():
    assert False
"""


def session(directory: Path, folder: str, *options: str, cases: str = CASES) -> list[str]:
    """The lines of a session over these cases, in a folder of this name."""
    (directory / folder).mkdir()
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / folder / "test_cases.py").write_text(cases)
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


def test_what_was_missed_while_a_module_s_fixture_came_counts_for_its_users(tmp_path: Path) -> None:
    """Not for others, and no more once the fixture has come anew."""
    lines = session(tmp_path, "kernel", cases=SCENES)
    assert failures(lines) == ["test_looks_at_it_too", "test_looks_at_nothing"]
    assert "kernel tests: 1 played again" in lines


def test_where_a_fixture_ends_badly_the_failure_stays(tmp_path: Path) -> None:
    """One or several, by whatever they raise: it is told, the case has failed, and the session goes on."""
    lines = session(tmp_path, "kernel", cases=BAD_ENDS)
    assert failures(lines) == ["test_fails_with_a_miss[error]", "test_fails_with_a_miss[outcome]"]
    assert "2 failed, 2 passed" in lines[-1]
    told = [line.partition(", but not played again: ") for line in lines if "not played again" in line]
    assert [of for of, _, _ in told] == [
        "kernel/test_cases.py::test_fails_with_a_miss[error]: tcp/some_event 1",
        "kernel/test_cases.py::test_fails_with_a_miss[outcome]: tcp/some_event 1",
    ]
    assert all("the end is bad" in why for _, _, why in told)
    assert "it is" in told[1][2]
    assert "kernel tests: 0 played again" in lines
