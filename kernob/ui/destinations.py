# SPDX-License-Identifier: Apache-2.0
"""`kernob destinations`: the baseline as a table, and how a person changes it.

The running agent does it, or where none runs its store is changed. Called by `commands.map`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kernob.config import Settings
from kernob.errors import ConfigError, KernobError
from kernob.ui.client import agent_listens, fetch_report
from kernob.ui.page import print_page
from kernob.view import printable

ChangeStore = Callable[[Path, Mapping[str, str]], Mapping[str, Any]]


def run_destinations(  # noqa: PLR0913  one argument per option of the command line
    settings: Settings,
    *,
    change_store: ChangeStore,
    action: str = "list",
    service: str = "",
    destination: str = "",
    port: int | None = None,
    state: str | None = None,
    as_json: bool = False,
) -> int:
    """List, accept or forget; return the exit code.

    Raises ConfigError for a change that names nothing, KernobError where nothing matches,
    AgentUnreachableError, PreconditionError, StoreError.
    """
    if action != "list" and not (service and destination):
        raise ConfigError(f"{action} needs a service and a destination; '*' stands for all")
    words = {"do": action, "service": service or "*", "destination": destination or "*"}
    words |= {"port": str(port)} if port is not None else {}
    words |= {"state": state} if state else {}
    if agent_listens(settings.socket_path):
        document: Mapping[str, Any] = fetch_report(settings.socket_path, "destinations", words)
    else:
        document = change_store(settings.state_dir, words)
    narrowed = bool(service or destination or state or port is not None)
    if action != "list":
        if not document["matched"]:
            raise KernobError(f"no such destination: {printable(service)} to {printable(destination)}")
        print(f"{document['changed']} {'accepted' if action == 'accept' else 'forgotten'}")
        return 0
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    elif not document["destinations"]:
        print("No destinations are known that match." if narrowed else "No destinations are known yet.")
    else:
        print_page(lambda _width: _table(document["destinations"]))
    return 0


def _table(rows: list[Mapping[str, Any]]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SERVICE", "DESTINATION"):
        table.add_column(name, overflow="fold")
    table.add_column("PORT", justify="right")
    table.add_column("STATE")
    table.add_column(f"FIRST SEEN ({datetime.now().astimezone():%Z})")
    for row in rows:
        target = str(row["target"])
        where = str(row["address"] or target)
        called = target.partition("/")[2].removeprefix("ip/")
        if not target.startswith(("ip/", "dns/")) and called != where:
            where = f"{where} ({called})"
        seen = datetime.fromtimestamp(row["first_unix_ns"] / 1e9).astimezone()
        state = str(row["state"])
        table.add_row(
            Text(printable(str(row["service"]))),
            Text(printable(where)),
            str(row["port"] or ""),
            Text(printable(state), style="bold yellow" if state == "new" else ""),
            f"{seen:%Y-%m-%d %H:%M:%S}",
        )
    return table
