# SPDX-License-Identifier: Apache-2.0
"""Writes `dashboards/*.json`. In: `boards.BOARDS`. Out: one file a dashboard, named by its uid.

    python -m grafana.generate            write them, remove files of dashboards that are gone
    python -m grafana.generate --check    write nothing; exit code 1 and one line for each file that differs

Needs grafana-foundation-sdk (the extra `dashboards`, Python 3.11 or newer).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import BOARDS

TARGET = Path(__file__).resolve().parent / "dashboards"


_NOT_IN_BOTH = ("cellHeight", "footer", "showTypeIcons", "valueMode", "minVizHeight", "minVizWidth")
"""Panels' options that the builders set unasked and that only one of Grafana 9.4 and 13 knows."""


def documents() -> dict[str, str]:
    """File name to text of every dashboard, the same at every call."""
    found: dict[str, str] = {}
    for board in BOARDS:
        document: dict[str, Any] = json.loads(json.dumps(board().build(), cls=JSONEncoder))
        _tidy(document)
        name = f"{document['uid']}.json"
        if name in found:
            raise ValueError(f"two dashboards have the uid {document['uid']!r}")
        found[name] = json.dumps(document, indent=2, sort_keys=True) + "\n"
    return found


def _tidy(document: dict[str, Any]) -> None:
    """Numbers the panels, and takes out what the builders add unasked.

    `style` would ask Grafana 9 for the dark theme whatever the user chose; some options of tables and bars
    are not in both releases; the others mean nothing where they stand.
    """
    document.pop("style", None)
    document["annotations"].setdefault("list", [])
    for number, panel in enumerate(document["panels"], start=1):
        panel["id"] = number
        panel.pop("repeatDirection", None)
        if "options" in panel:
            panel["options"] = panel["options"] or {}
        for name in _NOT_IN_BOTH:
            panel.get("options", {}).pop(name, None)
    for variable in document["templating"]["list"]:
        for name in ("id", "auto", "auto_min", "auto_count"):
            variable.pop(name, None)


def differing(target: Path = TARGET) -> list[str]:
    """Names of the files in `target` that are missing, outdated, or of no dashboard."""
    wanted = documents()
    present = {path.name: path.read_text(encoding="utf-8") for path in target.glob("*.json")}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def write(target: Path = TARGET) -> list[str]:
    """Makes `target` hold exactly the generated files; returns the names of those it changed."""
    target.mkdir(exist_ok=True)
    wanted = documents()
    changed = differing(target)
    for name in changed:
        if name in wanted:
            (target / name).write_text(wanted[name], encoding="utf-8")
        else:
            (target / name).unlink()
    return changed


def main(arguments: list[str]) -> int:
    """Exit code: 0 done or current, 1 outdated (`--check`), 2 for what is no argument of ours."""
    if arguments not in ([], ["--check"]):
        print(f"grafana.generate: unknown argument {arguments[0]!r} (only --check is known)", file=sys.stderr)
        return 2
    if arguments:
        outdated = differing()
        for name in outdated:
            print(f"{TARGET / name}: not what the code says; run 'make dashboards'", file=sys.stderr)
        return 1 if outdated else 0
    for name in write():
        print(TARGET / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
