# SPDX-License-Identifier: Apache-2.0
"""Which rows of the baseline a person means: by service, destination and port, with patterns.

In: rows and a client's words. Out: the rows that match. Called by `features.map_reports`, and by `kernob
destinations` where no agent runs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from kernob.model import DestinationRow
from kernob.state.text import wild


def choose(rows: Iterable[DestinationRow], words: Mapping[str, str]) -> list[DestinationRow]:
    """Rows whose service, destination (address, hostname or node) and state match; * and ? are wild.

    Raises ValueError, one line, for a port that is none.
    """
    service, where = (wild(words.get(name, "*")) for name in ("service", "destination"))
    state, port = words.get("state", "*"), words.get("port", "")
    if port and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"port is {port[:20]!r}: must be 0 to 65535")
    return [
        row
        for row in rows
        if fnmatch.fnmatchcase(row.service, service)
        and (fnmatch.fnmatchcase(row.address, where) or fnmatch.fnmatchcase(row.target, where))
        and fnmatch.fnmatchcase(row.state.value, state)
        and (not port or row.port == int(port))
    ]
