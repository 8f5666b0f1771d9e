# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, one after the other: `python -m benchmarks` (about 35 minutes, as root).

Each in a process of its own, so that none finds the memory of another. Exit code 1 if any failed.
"""

from __future__ import annotations

import subprocess
import sys

_MODULES = (
    "hotpath",
    "connection",
    "syscalls",
    "servers",
    "lives",
    "mapsize",
    "shapes",
    "agent_cost",
    "tick",
    "scores",
    "export_bench",
)


def main() -> int:
    """Runs them; returns the exit code."""
    codes = {
        name: subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        for name in _MODULES
    }
    failed = [name for name, code in codes.items() if code]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
