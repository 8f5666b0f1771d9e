# SPDX-License-Identifier: Apache-2.0
"""tracefs: where it is mounted, an own mount of it where it is not, kprobe events.

Called by `attach` and `capabilities`. Events are named kernob_<pid>_..., so that the next start can
remove what a killed agent left behind; a clean end removes its own.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from kernob.errors import AttachError
from kernob.kernel.mounts import PrivateMount

log = logging.getLogger(__name__)

_PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_GROUP = "kernob"
# calls that may block at the same time; beyond it the kernel skips returns
_MAX_ACTIVE = 4096
_serial = itertools.count()
_mounted_here: list[PrivateMount] = []
_events_here: dict[str, Path] = {}


def find() -> Path | None:
    """The mounted tracefs, or None; also where this user may not look into it."""
    for place in _PLACES:
        if os.access(place / "events", os.X_OK):
            return place
    return None


def ensure() -> Path:
    """The tracefs; where there is none to be found one that only this process sees. Raises AttachError."""
    place = find()
    if place:
        return place
    if not _mounted_here:
        try:
            _mounted_here.append(PrivateMount("tracefs"))
        except OSError as error:
            reason = "this kernel has no tracefs" if error.errno == errno.ENODEV else error.strerror
            raise AttachError(
                f"tracefs is not mounted, and Kernob may not mount its own ({reason})"
            ) from error
        remove_leftovers()
    return _mounted_here[0].path


def release() -> None:
    """Removes kprobe events nobody removed, unmounts what `ensure` mounted: all is as it was found.

    An event that another session of this process is attached to stays, and so does the mount, until its end.
    """
    for name in list(_events_here):
        try:
            _remove(name)
        except OSError as error:
            log.debug("kprobe event %s: %s", name, error)  # mostly one the kernel refused to create
            if error.errno != errno.EBUSY:
                del _events_here[name]
    while _mounted_here and not _events_here:
        _mounted_here.pop().close()


def is_traceable(function: str) -> bool:
    """Whether the kernel has a symbol of this name to put a kprobe on."""
    try:
        with Path("/proc/kallsyms").open(encoding="ascii", errors="replace") as symbols:
            # address, type, name, and for modules their own name
            return any(line.split(maxsplit=3)[2] == function for line in symbols if function in line)
    except OSError as error:
        log.info("cannot look up %s: %s", function, error)
        return False


def event_id(name: str) -> int:
    """The number of the tracepoint "group/event". Raises AttachError or OSError."""
    return int((ensure() / "events" / name / "id").read_text(encoding="ascii"))


def add_kprobe(function: str, at_return: bool) -> tuple[int, Callable[[], None]]:
    """Creates a kprobe event; (tracepoint id, function that removes it). Raises AttachError or OSError."""
    root = ensure()
    control = root / "kprobe_events"
    if not control.exists():
        raise AttachError("this kernel has no kprobes")
    name = f"{_GROUP}_{os.getpid()}_{next(_serial)}_{'r' if at_return else 'p'}_{function}"
    kind = f"r{_MAX_ACTIVE}" if at_return else "p"
    _events_here[name] = control  # before it is there: a signal may end us at any moment
    _append(control, f"{kind}:{_GROUP}/{name} {function}")
    event_id = int((root / "events" / _GROUP / name / "id").read_text(encoding="ascii"))
    return event_id, lambda: _remove(name)


def _remove(name: str) -> None:
    _append(_events_here[name], f"-:{_GROUP}/{name}")
    del _events_here[name]


def remove_leftovers() -> None:
    """Removes kprobe events of agents that no longer run (killed before they could)."""
    root = _mounted_here[0].path if _mounted_here else find()
    control = root / "kprobe_events" if root else None
    if not control or not control.exists():
        return
    for line in control.read_text(encoding="ascii", errors="replace").splitlines():
        event = line.split()[0].partition(":")[2]
        group, _, name = event.partition("/")
        pid = name.split("_")[1] if name.startswith(f"{_GROUP}_") else ""
        if group == _GROUP and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            try:
                _append(control, f"-:{event}")
            except OSError as error:
                log.warning("kprobe event %s, left by a killed agent, cannot be removed: %s", event, error)


def _append(path: Path, line: str) -> None:
    # not Path.open("a"): that seeks, which tracefs refuses
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)
