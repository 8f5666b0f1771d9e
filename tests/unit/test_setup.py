# SPDX-License-Identifier: Apache-2.0
"""What `make setup` installs is pinned and hash-locked, and its script says plainly what it cannot do."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")


def pinned(lock: str) -> dict[tuple[str, str], str]:
    """The text of each requirement in a lock file, by (name, version)."""
    text = ROOT.joinpath(lock).read_text()
    found = {}
    for block in re.split(r"\n(?=[a-z])", text):
        match = re.match(r"([a-z0-9-]+)==([^ ;\\]+)", block)
        if match:
            found[match[1], match[2]] = block
    return found


def declared(section: str) -> set[str]:
    """Names of the distributions a list of pyproject.toml asks for (tomllib came with Python 3.11)."""
    text = ROOT.joinpath("pyproject.toml").read_text()
    body = re.search(rf"^{section} = (\[[^]]*\])", text, flags=re.MULTILINE)
    assert body is not None
    return {re.split(r"[ <>=~\[]", item)[0].replace("_", "-") for item in ast.literal_eval(body[1])}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_has_hashes_and_no_address(lock: str) -> None:
    """Where packages come from is the user's setting, not ours."""
    text = ROOT.joinpath(lock).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=sha256:)", text, flags=re.MULTILINE)
    requirements = pinned(lock)
    assert requirements
    for (name, version), block in requirements.items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), f"{name}=={version} has no hash"


def test_the_locks_hold_what_is_declared_and_agree() -> None:
    """The development lock contains the whole runtime lock, version by version."""
    runtime, development = pinned("requirements.lock"), pinned("requirements-dev.lock")
    assert set(runtime) <= set(development)
    assert declared("dependencies") | declared("build") <= {name for name, _ in runtime}
    assert declared("dev") <= {name for name, _ in development}
    assert "bcc" not in {name for name, _ in development}, "BCC comes from the distribution"


def test_an_unknown_argument_is_one_line_and_exit_3() -> None:
    """Nothing is touched then."""
    result = subprocess.run(
        ["sh", "scripts/setup.sh", "--bogus"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr == "setup: unknown argument '--bogus' (only --dev is known)\n"


def test_the_makefile_explains_its_targets() -> None:
    """`make` alone names every target that is meant to be called."""
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.findall(r"^  make ([a-z-]+) ", result.stdout, flags=re.MULTILINE)
    assert {"setup", "top", "test", "lint", "doctor"} <= set(targets)
    phony = re.search(r"^\.PHONY: (.*)$", ROOT.joinpath("Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(targets)
