# SPDX-License-Identifier: Apache-2.0
"""Names of containers, by what their runtimes keep on the host's disk; no runtime's socket is asked.

In: a container's full id, as its control group tells it. Out: its name, or None (it is then shown by its
short id). Called by `pipeline` for each new process in a container, from the tick's thread.

Looked at, in this order, below the host's root: Docker's config.v2.json, the lists of Podman and CRI-O,
the annotations of containerd's bundles (nerdctl, Kubernetes); then the command line of a container's
monitor (conmon); then what `container_watch` saw of a container that is gone again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kernob.kernel.capabilities import FIRST_PID_NAMESPACE
from kernob.kernel.container_watch import ContainerWatch
from kernob.kernel.hostfs import HostRoot
from kernob.kernel.runtimes import RuntimeFiles

log = logging.getLogger(__name__)

_KEPT_MAX = 4096
_SCAN_S = 10.0
_RETRY_S = 10.0
_NAME_CHARACTERS = 64
_COMMAND_BYTES = 65536

Clean = Callable[[bytes, int], str]


class ContainerNames:
    """Callable: id -> name or None. A name once found is kept; what is unknown is asked again later.

    `roots` are the directories below which the host's files may be seen, best first; `clean` makes a
    name printable and short (`kernob.state.names.sanitize`).
    """

    def __init__(
        self,
        roots: Sequence[Path],
        proc_root: Path,
        clean: Clean,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots = tuple(roots)
        self._proc_root = proc_root
        self._clean = clean
        self._clock = clock
        self._names: dict[str, str] = {}
        self._seen: dict[str, str] = {}
        self._unknown: dict[str, float] = {}
        self._engines: dict[Path, tuple[str, ...]] = {}
        self._scanned_s = float("-inf")
        self._watch: ContainerWatch | None = None
        self._told = False

    def start(self) -> None:
        """Begins to watch for containers that come; without it those that are gone soon have no name."""
        try:
            self._watch = ContainerWatch(self._on_seen)
        except OSError as error:
            log.info("containers that live for a moment are shown by their ids: %s", error.strerror)
            return
        self._scan()
        for files in self._files():
            self._watch.add(files)
        self._watch.start()

    def close(self) -> None:
        """Stops watching."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def __call__(self, container_id: str) -> str | None:
        """The name, 1 to 64 printable characters; None where it is not known (yet)."""
        name = self._names.get(container_id)
        if name is None and self._unknown.get(container_id, float("-inf")) <= self._clock():
            name = self._look_up(container_id)
            if name:
                _keep(self._names, container_id, name)
            else:
                _keep(self._unknown, container_id, self._clock() + _RETRY_S)
                self._tell_why(container_id)
        return name or None

    def _look_up(self, container_id: str) -> str:
        if name := self._in_files(container_id):
            return name
        if name := self._seen.get(container_id, ""):
            return name
        if self._clock() - self._scanned_s < _SCAN_S:
            return ""
        # an engine that was started since, or one whose files are elsewhere
        name = self._scan().get(container_id, "")
        if self._watch is not None:
            for files in self._files():
                self._watch.add(files)
        return self._printable(name) or self._in_files(container_id)

    def _in_files(self, container_id: str) -> str:
        for files in self._files():
            if name := self._printable(files.name_of(container_id)):
                return name
        return ""

    def _files(self) -> list[RuntimeFiles]:
        """The ways to the host's files: as configured, then as the engines themselves see them."""
        known = dict.fromkeys(path for paths in self._engines.values() for path in paths)
        ways = [RuntimeFiles(HostRoot(root), tuple(known)) for root in self._roots]
        return ways + [RuntimeFiles(HostRoot(root), paths) for root, paths in self._engines.items()]

    def _scan(self) -> dict[str, str]:
        """Looks through all processes for engines and for monitors; the latter's id -> name."""
        self._scanned_s = self._clock()
        self._engines = {}
        monitored: dict[str, str] = {}
        try:
            pids = [entry for entry in os.listdir(self._proc_root) if entry.isdecimal()]  # noqa: PTH208
        except OSError:
            return monitored
        for pid in pids:
            directory = self._proc_root / pid
            comm = _content(directory / "comm").strip()
            if comm == b"dockerd" and _is_hosts(directory):
                paths = _options(_content(directory / "cmdline"), ("--data-root", "-g", "--graph"))
                self._engines[directory / "root"] = tuple(p.strip("/") for p in paths if p.startswith("/"))
            elif comm == b"conmon":
                command = _content(directory / "cmdline")
                ids, names = _options(command, ("-c", "--cid")), _options(command, ("-n", "--name"))
                if ids and names:  # the first: what follows is others' arguments
                    _keep(monitored, ids[0], names[0])
        return monitored

    def _on_seen(self, container_id: str, name: str) -> None:
        """From the watch's thread."""
        if name := self._printable(name):
            _keep(self._seen, container_id, name)
            log.debug("container %s is called %s", container_id[:12], name)

    def _printable(self, name: str) -> str:
        name = name.lstrip("/")  # Docker's own files write it with a slash
        return self._clean(name.encode("utf-8", "replace"), _NAME_CHARACTERS) if name.strip() else ""

    def _tell_why(self, container_id: str) -> None:
        if self._told:
            return
        self._told = True
        reasons = [f"{root}: {_hindrance(root)}" for root in self._roots]
        log.warning(
            "container %s is shown by its id, as others may be: no runtime's files with its name (%s); "
            "mount the host's root read-only and set KERNOB_HOST_ROOT, or leave it so",
            container_id[:12],
            "; ".join(reasons) or "nowhere to look",
        )


def _is_hosts(directory: Path) -> bool:
    """Whether a process is root's and in no container: what it says of files is then the host's."""
    try:
        namespace = str((directory / "ns/pid").readlink())
        return directory.stat().st_uid == 0 and namespace == FIRST_PID_NAMESPACE
    except OSError:
        return False


def _hindrance(root: Path) -> str:
    """Why nothing is found below a root."""
    try:
        names = os.listdir(root)  # noqa: PTH208 - its error is the answer
    except OSError as error:
        return error.strerror or str(error)
    return "searched" if names else "empty"


def _options(command: bytes, names: tuple[str, ...]) -> list[str]:
    """The values of an option in a command line whose arguments end in NUL: --x y, --x=y."""
    arguments = command.decode("utf-8", "surrogateescape").split("\0")
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        if option in names:
            found.append(value if equals else following)
    return found


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_COMMAND_BYTES)
    except OSError:
        return b""


def _keep(kept: dict[str, str] | dict[str, float], key: str, value: str | float) -> None:
    """Sets one entry; the oldest go where there are too many."""
    kept.pop(key, None)
    while len(kept) >= _KEPT_MAX:
        kept.pop(next(iter(kept)))
    kept[key] = value  # type: ignore[assignment]
