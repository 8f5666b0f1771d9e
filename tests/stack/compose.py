# SPDX-License-Identifier: Apache-2.0
"""The stack as these tests bring it up: from packages, or with the images that an overlay names."""

from __future__ import annotations

import os
from pathlib import Path

from compose import project
from compose.project import PORTS, ROOT, StackError, free_ports, progress, run, wait_for

__all__ = [
    "EXTRA",
    "HERE",
    "PORTS",
    "ROOT",
    "Stack",
    "StackError",
    "free_ports",
    "progress",
    "run",
    "wait_for",
]

HERE = Path(__file__).parent
EXTRA = os.environ.get("KERNOB_TEST_STACK_OVERLAY", "")


class Stack(project.Stack):
    """One compose project, with the overlay of KERNOB_TEST_STACK_OVERLAY."""

    @property
    def files(self) -> list[str]:
        """The options that name the compose files."""
        extra = [EXTRA] if EXTRA else []
        return [word for name in (*self.base, *extra, *self.overlays) for word in ("-f", name)]
