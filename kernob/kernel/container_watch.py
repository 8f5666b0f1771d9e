# SPDX-License-Identifier: Apache-2.0
"""Learns the names of containers as they are created (inotify(7)), before they can be gone again.

In: the directories of `runtimes`. Out: (id, name), by a callback, from a thread of its own. Called by
`containers`. `docker run --rm` of a command that takes 0.1 s is removed before any tick could ask for
its name; its directory exists a little longer than its process. Costs nothing while no container comes or
goes. Where it cannot work (no inotify left) such containers are shown by their ids.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import select
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kernob.kernel.runtimes import RuntimeFiles

log = logging.getLogger(__name__)

_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_CREATE, _IN_IGNORED, _IN_ONLYDIR = 0x8, 0x80, 0x100, 0x8000, 0x1000000
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT = struct.Struct("iIII")
_WATCHES_MAX = 4096
_DOCKER_ID = re.compile(r"[0-9a-f]{64}")
_CONFIG = "config.v2.json"
_libc = ctypes.CDLL(None, use_errno=True)

Found = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class _Place:
    """A watched directory: a Docker engine's, one container's in it (`container_id`), or a Podman list's."""

    files: RuntimeFiles
    directory: str
    podman: bool = False
    container_id: str = ""


class ContainerWatch:
    """`found` is called for every container there is and comes, with the name as its runtime wrote it."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._fd = _libc.inotify_init1(_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._waker, self._wake = os.pipe2(_NONBLOCK_CLOEXEC)
        self._places: dict[int, _Place] = {}
        self._seen: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="containers", daemon=True)

    def start(self) -> None:
        """Begins to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stops listening; to be called once."""
        os.write(self._wake, b"x")
        if self._thread.is_alive():
            self._thread.join()
        for descriptor in (self._fd, self._waker, self._wake):
            os.close(descriptor)

    def add(self, files: RuntimeFiles) -> None:
        """Watches a root's directories, as far as they exist, and tells of what is in them already.

        Called again it looks for those that came since.
        """
        docker = [_Place(files, directory) for directory in files.docker_directories()]
        podman = [_Place(files, directory, podman=True) for directory in files.podman_directories()]
        for place in (*docker, *podman):
            if self._watch(place, _IN_MOVED_TO | _IN_CLOSE_WRITE if place.podman else _IN_CREATE):
                self._tell_all(place)

    def _watch(self, place: _Place, mask: int) -> bool:
        """Whether the directory is watched now and was not before."""
        try:
            with self._lock, place.files.root.opened(place.directory, os.O_DIRECTORY) as descriptor:
                status = os.fstat(descriptor)
                identity = (status.st_dev, status.st_ino)
                if len(self._places) >= _WATCHES_MAX or (not place.container_id and identity in self._seen):
                    return False
                path = f"/proc/self/fd/{descriptor}".encode()
                watch = _libc.inotify_add_watch(self._fd, path, mask | _IN_ONLYDIR)
                if watch < 0:
                    log.info("cannot watch %s: %s", place.directory, os.strerror(ctypes.get_errno()))
                    return False
                self._places[watch] = place
                if not place.container_id:
                    self._seen.add(identity)
        except OSError as error:
            log.debug("%s: %s", place.directory, error)
            return False
        return True

    def _tell_all(self, place: _Place) -> None:
        if place.podman:
            self._tell_podman(place)
            return
        for name in place.files.root.names(place.directory):
            if _DOCKER_ID.fullmatch(name):
                self._tell_docker(place, name)

    def _tell_docker(self, place: _Place, container_id: str) -> None:
        directory = place.directory.removesuffix(f"/{container_id}")
        if name := place.files.docker_name(directory, container_id):
            self._found(container_id, name)

    def _tell_podman(self, place: _Place) -> None:
        for container_id, name in place.files.podman_names(place.directory):
            self._found(container_id, name)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._waker, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if self._waker in ready:
                return
            for watch, mask, name in _events(os.read(self._fd, 1 << 16)):
                with self._lock:
                    place = self._places.get(watch)
                    if mask & _IN_IGNORED:
                        self._places.pop(watch, None)
                if place is not None:
                    self._on_event(place, name)

    def _on_event(self, place: _Place, name: str) -> None:
        if place.podman:
            if name.endswith("containers.json"):
                self._tell_podman(place)
        elif place.container_id:
            if name == _CONFIG:
                self._tell_docker(place, place.container_id)
        elif _DOCKER_ID.fullmatch(name):
            directory = f"{place.directory}/{name}"
            self._watch(_Place(place.files, directory, container_id=name), _IN_MOVED_TO | _IN_CLOSE_WRITE)
            self._tell_docker(place, name)  # it may have been written before the watch was there


def _events(raw: bytes) -> Iterator[tuple[int, int, str]]:
    """(watch, mask, name) of each struct inotify_event."""
    at = 0
    while at + _EVENT.size <= len(raw):
        watch, mask, _cookie, length = _EVENT.unpack_from(raw, at)
        at += _EVENT.size
        yield watch, mask, raw[at : at + length].rstrip(b"\0").decode("utf-8", "replace")
        at += length
