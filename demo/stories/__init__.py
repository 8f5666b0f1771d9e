# SPDX-License-Identifier: Apache-2.0
"""The stories, in the order in which they are told. One file each; a new one is a line here."""

from __future__ import annotations

from demo.story import Story

from . import backup, broker, crash_loop, dependency, disk, futex, leak, service_map, stranger

STORIES: tuple[Story, ...] = (
    leak.STORY,
    broker.STORY,
    backup.STORY,
    futex.STORY,
    disk.STORY,
    crash_loop.STORY,
    stranger.STORY,
    service_map.STORY,
    *dependency.STORIES,
)
