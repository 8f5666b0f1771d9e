# SPDX-License-Identifier: Apache-2.0
"""Where container runtimes keep the names of their containers, and how these files are read.

In: a root of the host, a container's full id. Out: names as the runtimes wrote them, nothing where the
files say nothing. Called by `containers` and `container_watch`. The files are root's, but whoever may
start a container chose what stands in them: sizes are bounded, and `containers` makes names printable.
Users' homes are not searched (rootless engines): that would mount them where they come over the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from kernob.kernel.hostfs import HostRoot

DOCKER_ROOTS = ("var/lib/docker", "var/snap/docker/common/var-lib-docker")
PODMAN_ROOTS = ("var/lib/containers/storage",)
_BUNDLES = (
    "run/containerd/io.containerd.runtime.v2.task",
    "run/k3s/containerd/io.containerd.runtime.v2.task",
)
_DRIVERS = ("overlay", "vfs", "btrfs", "zfs")
_LISTS = ("containers.json", "volatile-containers.json")  # the second: podman run --rm
_ANNOTATIONS = ("nerdctl/name", "io.kubernetes.cri.container-name", "io.kubernetes.cri.sandbox-name")
_REMAPPED = re.compile(r"\d+\.\d+")  # dockerd --userns-remap keeps its state in a directory uid.gid
_FILE_BYTES_MAX = 8 << 20


class RuntimeFiles:
    """Reads one root. `docker_roots` are directories named from it, beside the usual ones."""

    def __init__(self, root: HostRoot, docker_roots: tuple[str, ...] = ()) -> None:
        self.root = root
        self._docker_roots = docker_roots

    def docker_directories(self) -> list[str]:
        """Every directory in which a Docker engine keeps one directory for each container."""
        bases = dict.fromkeys((*self._docker_roots, *self._configured(), *DOCKER_ROOTS))
        found = []
        for base in bases:
            names = self.root.names(base)
            inner = (
                [base, *(f"{base}/{name}" for name in names if _REMAPPED.fullmatch(name))] if names else []
            )
            found += [f"{each}/containers" for each in inner if each != base or "containers" in names]
        return found

    def podman_directories(self) -> list[str]:
        """Every directory in which Podman or CRI-O keeps its lists of containers."""
        found = []
        for base in PODMAN_ROOTS:
            names = set(self.root.names(base))
            found += [f"{base}/{d}-containers" for d in _DRIVERS if f"{d}-containers" in names]
        return found

    def name_of(self, container_id: str) -> str:
        """The name of one container, "" where no file tells it."""
        for directory in self.docker_directories():
            if name := self.docker_name(directory, container_id):
                return name
        for directory in self.podman_directories():
            for found_id, name in self.podman_names(directory):
                if found_id == container_id:
                    return name
        return self._bundle_name(container_id)

    def docker_name(self, directory: str, container_id: str) -> str:
        """What config.v2.json of a container says; "" without one."""
        name = self._json(f"{directory}/{container_id}/config.v2.json").get("Name")
        return name if isinstance(name, str) else ""

    def podman_names(self, directory: str) -> Iterator[tuple[str, str]]:
        """(id, name) of every container in the lists of containers/storage."""
        for name in _LISTS:
            for entry in self._json(f"{directory}/{name}").get("", ()):
                names = entry.get("names") if isinstance(entry, dict) else None
                if isinstance(names, list) and names and isinstance(names[0], str):
                    yield str(entry.get("id", "")), names[0]

    def _bundle_name(self, container_id: str) -> str:
        """What the annotations of an OCI bundle of containerd say: nerdctl's and Kubernetes' names."""
        for base in _BUNDLES:
            for namespace in self.root.names(base):
                config = self._json(f"{base}/{namespace}/{container_id}/config.json")
                annotations = config.get("annotations")
                if isinstance(annotations, dict):
                    names = [annotations.get(key) for key in _ANNOTATIONS]
                    return next((name for name in names if isinstance(name, str) and name), "")
        return ""

    def _configured(self) -> tuple[str, ...]:
        """The data-root of the engine's own configuration file."""
        path = self._json("etc/docker/daemon.json").get("data-root")
        return (path.strip("/"),) if isinstance(path, str) and path.startswith("/") else ()

    def _json(self, path: str) -> dict[str, Any]:
        """An object, or a list as {"": list}; {} where there is no such file, it is forbidden or damaged."""
        try:
            document = json.loads(self.root.read(path, _FILE_BYTES_MAX))
        except (OSError, ValueError, RecursionError):
            return {}
        if isinstance(document, list):
            return {"": document}
        return document if isinstance(document, dict) else {}
