# SPDX-License-Identifier: Apache-2.0
"""What a lock file asks for under the guest's Python, which is not the Python that pip runs on here.

Enters: the text of a hash-locked requirements file with environment markers, the guest's Python version.
Leaves: the same file without markers, only with what holds in the guest. Run by packages.py with an
interpreter that has pip, because pip evaluates markers for its own interpreter whatever it is told.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    from packaging.markers import Marker
except ImportError:  # an environment of its own has only pip, which brings its copy
    from pip._vendor.packaging.markers import Marker  # type: ignore[assignment]

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)\s*(?:;(?P<marker>[^\\]*))?")


def for_guest(lock: str, python_version: str, without: frozenset[str]) -> str:
    r"""Return what of `lock` holds for `python_version` ("3.13"), except the names in `without`.

    >>> for_guest("a==1 ; python_version < '3.12' \\\n    --hash=sha256:00\nb==2\n", "3.13", frozenset())
    'b==2\n'
    """
    environment = {
        "python_version": python_version,
        "python_full_version": f"{python_version}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
        "extra": "",
    }
    kept: list[str] = []
    wanted = False
    for line in lock.splitlines():
        found = REQUIREMENT.match(line)
        if found:
            marker = (found["marker"] or "").strip()
            wanted = found["name"] not in without and (not marker or Marker(marker).evaluate(environment))
            if wanted:
                kept.append(
                    f"{found['name']}=={found['version']} \\" if line.endswith("\\") else found[0].strip()
                )
        elif wanted and line.lstrip().startswith("--hash="):
            kept.append(line)
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    print(for_guest(Path(sys.argv[1]).read_text(), sys.argv[2], frozenset(sys.argv[3].split(","))), end="")
