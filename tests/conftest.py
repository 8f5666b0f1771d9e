# SPDX-License-Identifier: Apache-2.0
"""What all tests share.

No example may fail for taking long, since machines are shared and noisy. No setting of whoever runs the
tests reaches the programs they start.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# read by the tests themselves (tests/kernel/harness.py, tests/lanes), which clean what they pass on
_FOR_TESTS = (
    "KERNOB_PROGRAM",
    "KERNOB_TEST_SCALE",
    "KERNOB_TEST_PROGRAMS",
    "KERNOB_STRATEGIES_OFF",
    "KERNOB_BTF",
    "KERNOB_PROC_ROOT",
    "KERNOB_TEST_STACK_KEEP",
    "KERNOB_TEST_STACK_OVERLAY",
    "KERNOB_TEST_RESOLVED",
)

for _name in [name for name in os.environ if name.startswith("KERNOB_") and name not in _FOR_TESTS]:
    del os.environ[_name]

settings.register_profile("kernob", deadline=None, print_blob=True)
settings.load_profile("kernob")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The stack's tests need a Docker engine and run only where they are named (`make test-stack`)."""
    if collection_path != Path(__file__).parent / "stack":
        return None
    named = any("tests/stack" in Path(word.split("::")[0]).absolute().as_posix() for word in config.args)
    return None if named else True
