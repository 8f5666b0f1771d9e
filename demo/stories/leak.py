# SPDX-License-Identifier: Apache-2.0
"""A slow leak of file descriptors, found long before the limit.

A session store forgets to close a file each second; 1,024 would end it after a quarter of an hour. The trend
alert needs six windows: hours in life, ten seconds each in the demo. Without the fault it closes them.
"""

from __future__ import annotations

from demo.scene import Scene
from demo.story import ALONE, Story

SERVICE = "sessions.py"
ALERT = "KernobFdLeak"
LIMIT = 1024


def run(scene: Scene) -> None:
    """See the module."""
    place = scene.business.place / "sessions"
    place.mkdir()
    store = scene.program(SERVICE, place, "leaks" if scene.faulty else "closes", word="kept")
    pid = str(store.pid)
    scene.fault(f"{SERVICE} (PID {pid}) forgets to close one file a second")

    alert = scene.expect(f"{ALERT} for PID {pid}", lambda: scene.firing(ALERT, process_pid=pid), 120)[0]
    scene.log(f"{store.lines()[-1]}   (all it says)")
    scene.says(f"{ALERT}: {alert.summary} (an hour is ten seconds here)")
    descriptors = f'max(process_open_file_descriptors{{process_pid="{pid}"}})'
    open_now = scene.expect("its open descriptors", lambda: scene.value(descriptors), 30)
    scene.must(
        0 < open_now < LIMIT / 2,
        f"fired with {open_now:.0f} of {LIMIT} descriptors open, {LIMIT - open_now:.0f} s before the limit",
    )
    scene.see("kernob-host")


STORY = Story("leak", "A slow leak of file descriptors", run, ALONE)
