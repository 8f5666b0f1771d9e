# SPDX-License-Identifier: Apache-2.0
"""A session store on files: `sessions.py DIRECTORY leaks|closes`; one session a second.

It starts with 60 open ones. One that leaks forgets to close them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from wire import log


def main(directory: str, manner: str) -> None:
    """See the module."""
    kept = [Path(directory, f"session-{n}").open("w") for n in range(60)]  # noqa: SIM115
    log("sessions are kept")
    number = len(kept)
    while True:
        session = Path(directory, f"session-{number}").open("w")  # noqa: SIM115
        number += 1
        if manner == "leaks":
            kept.append(session)
        else:
            session.close()
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
