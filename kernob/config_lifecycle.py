# SPDX-License-Identifier: Apache-2.0
"""The settings of who came and went. Part of `config_settings`, which has their fields."""

from __future__ import annotations

from kernob.config_values import Flag, Number, Setting, Word, Words

_EVENTS = ("failures", "exits", "execs", "forks")

LIFECYCLE_SETTINGS = (
    Setting("KERNOB_LIFECYCLE", "lifecycle", Flag(), "whether starts and ends of processes are counted"),
    Setting(
        "KERNOB_LIFECYCLE_EVENTS",
        "lifecycle_events",
        Words("|".join(_EVENTS), ", ".join(_EVENTS)),
        "what is told one by one: failures only, or also every exit, exec or fork",
    ),
    Setting(
        "KERNOB_COMMAND_LINES",
        "command_lines",
        Word(("on", "off", "mask")),
        "whether events carry command lines: as they are, not at all, or without what looks like a secret",
    ),
    Setting(
        "KERNOB_COMMAND_LINE_MASKS",
        "command_line_masks",
        Words(r"[\w*?.-]{1,64}", "option or variable names (* and ? allowed)"),
        "options and variables whose values are masked besides the usual ones",
    ),
    Setting(
        "KERNOB_CRASH_LOOP_RESTARTS",
        "crash_loop_restarts",
        Number(2, 1000, "a whole number of restarts", whole=True),
        "so many restarts within the window, each ending in a failure, are a crash loop",
    ),
    Setting(
        "KERNOB_CRASH_LOOP_WINDOW",
        "crash_loop_window_s",
        Number(5, 3600, "a number of seconds"),
        "over which restarts are counted; a loop is over when nothing failed for so long",
    ),
    Setting(
        "KERNOB_MAX_LIFECYCLE_SERIES",
        "max_lifecycle_series",
        Number(1, 1_000_000, "a whole number of series", whole=True),
        "kernob.process.starts and .exits each, likewise",
    ),
    Setting(
        "KERNOB_MAX_LIVES",
        "max_lives",
        Number(16, 4_194_304, "a whole number of processes", whole=True),
        "capacity of the map of living processes",
    ),
)
