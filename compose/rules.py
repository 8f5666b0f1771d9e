# SPDX-License-Identifier: Apache-2.0
"""Alert rules in a hurry: what takes ten minutes in life takes one where somebody waits for it.

Enters: the text of a file of victoriametrics/rules. Leaves: the same rules with shorter durations;
thresholds and expressions are otherwise as they are. Called by the demo and the tests of the stack.
"""

from __future__ import annotations

import re

HOUR_S = 10
"""What an hour becomes in `hours_as_seconds`."""


def quick(rules: str) -> str:
    r"""Minutes of waiting become seconds, windows of two minutes half a one, evaluated every 2 s.

    >>> quick("        for: 3m\n        increase(x[2m]) / 120 > 180\n    interval: 30s\n")
    '        for: 3s\n        increase(x[30s]) / 30 > 40\n    interval: 2s\n'
    """
    rules = re.sub(r"(\n? +(?:for|keep_firing_for): \d+)m\n", r"\1s\n", rules)
    rules = re.sub(r"( interval: )\w+\n", r"\g<1>2s\n", rules)
    # half a minute is enough for traffic that never pauses; in life a quiet series comes once a minute
    return (
        rules.replace("[2m]", "[30s]")
        .replace("/ 120", "/ 30")
        .replace("> 180", "> 40")
        .replace("> 90", "> 20")
    )


def hours_as_seconds(rules: str) -> str:
    r"""Windows and offsets of hours and days, an hour being HOUR_S seconds. For rules about trends.

    >>> hours_as_seconds("min_over_time(x[1h]) offset 5h <= max_over_time(x[7d] offset 6h)")
    'min_over_time(x[10s]) offset 50s <= max_over_time(x[1680s] offset 60s)'
    """

    def seconds(found: re.Match[str]) -> str:
        before, number, unit = found.groups()
        return f"{before}{int(number) * HOUR_S * (24 if unit == 'd' else 1)}s"

    return re.sub(r"(\[|offset )(\d+)([hd])\b", seconds, rules)
