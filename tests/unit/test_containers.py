# SPDX-License-Identifier: Apache-2.0
"""Names of containers: from files made by hand as runtimes write them, from monitors, and seen in passing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kernob.kernel import container_watch, containers
from kernob.kernel.containers import ContainerNames
from kernob.kernel.hostfs import HostRoot
from kernob.state.names import sanitize
from tests.unit.fake_agent import eventually

ID, OTHER = "4f1b2c3d5e6a" + 52 * "0", "a" * 64
HOST_PIDS = "pid:[4026531836]"


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def docker(root: Path, container_id: str, name: object, base: str = "var/lib/docker") -> Path:
    """A container as Docker keeps it; the directory of its own."""
    path = root / base / "containers" / container_id / "config.v2.json"
    write(path, {"ID": container_id, "Name": name, "Config": {"Env": ["A=b"]}})
    return path.parent


def add_process(proc: Path, pid: int, comm: str, *arguments: str, root: Path | None = None) -> None:
    directory = proc / str(pid)
    write(directory / "comm", f"{comm}\n")
    write(directory / "cmdline", "".join(f"{argument}\0" for argument in arguments))
    (directory / "ns").mkdir()
    (directory / "ns" / "pid").symlink_to(HOST_PIDS)
    if root is not None:
        (directory / "root").symlink_to(root)


class Clock:
    """Time that tests pass themselves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def names_of(root: Path, clock: Clock | None = None) -> ContainerNames:
    (root / "proc").mkdir(exist_ok=True)
    return ContainerNames((root,), root / "proc", sanitize, clock or Clock())


# ---- the host's files


def test_links_on_the_host_stay_on_the_host(tmp_path: Path) -> None:
    """An absolute link means the host's directory; nothing leads out of the root."""
    root = tmp_path / "host"
    write(root / "data/docker/file", "inside")
    write(tmp_path / "secret", "outside")
    (root / "var").mkdir()
    (root / "var/docker").symlink_to("/data/docker")
    (root / "var/out").symlink_to("../../secret")
    host = HostRoot(root)
    assert host.read("var/docker/file", 100) == b"inside"
    assert host.read("/var/docker/file", 3) == b"ins"
    assert host.names("var/docker") == ["file"]
    for name in ("var/out", "../secret", "absent", "var"):
        with pytest.raises(OSError, match=r"."):
            host.read(name, 100)
    assert host.names("absent") == []
    assert HostRoot(tmp_path / "nowhere").names("") == []


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A FIFO would hold up the tick for ever."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        HostRoot(tmp_path).read("fifo", 10)


# ---- runtimes


@pytest.mark.parametrize(
    ("path", "content"),
    [
        pytest.param(f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/web"}, id="Docker"),
        pytest.param(
            f"var/lib/docker/231072.231072/containers/{ID}/config.v2.json",
            {"Name": "/web"},
            id="userns-remap",
        ),
        pytest.param(
            f"var/snap/docker/common/var-lib-docker/containers/{ID}/config.v2.json",
            {"Name": "/web"},
            id="snap",
        ),
        pytest.param(
            "var/lib/containers/storage/overlay-containers/containers.json",
            [{"id": OTHER, "names": ["db"]}, {"id": ID, "names": ["web", "x"]}],
            id="Podman",
        ),
        pytest.param(
            "var/lib/containers/storage/vfs-containers/volatile-containers.json",
            [{"id": OTHER}, 7, {"id": ID, "names": ["web"]}],
            id="Podman, --rm, vfs",
        ),
        pytest.param(
            f"run/containerd/io.containerd.runtime.v2.task/default/{ID}/config.json",
            {"annotations": {"nerdctl/name": "web"}},
            id="nerdctl",
        ),
        pytest.param(
            f"run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
            {
                "annotations": {
                    "io.kubernetes.cri.container-name": "web",
                    "io.kubernetes.cri.sandbox-name": "p",
                }
            },
            id="k3s",
        ),
    ],
)
def test_each_runtime_keeps_names_in_its_own_place(tmp_path: Path, path: str, content: object) -> None:
    """Found below the host's root, without a setting; another container is not taken for it."""
    write(tmp_path / path, content)
    assert names_of(tmp_path)(ID) == "web"
    assert names_of(tmp_path)("b" * 64) is None


def test_an_engine_may_keep_its_state_elsewhere(tmp_path: Path) -> None:
    """As daemon.json says, behind a link too."""
    docker(tmp_path, ID, "/web", "srv/docker")
    (tmp_path / "data").symlink_to("/srv")
    write(tmp_path / "etc/docker/daemon.json", {"data-root": "/data/docker"})
    assert names_of(tmp_path)(ID) == "web"


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            "7",
            '"x"',
            '{"Name": null}',
            '{"Name": 3}',
            '{"Name": ""}',
            '{"Name": "/"}',
        ),
        *("\x00", "[" * 100_000, '{"Name": " \t"}', '{"a": "' + "x" * 100_000 + '"}'),
    ],
)
def test_a_damaged_file_is_no_name_and_no_crash(tmp_path: Path, content: str) -> None:
    """Half written, of another form, empty, deeply nested."""
    for path in (
        f"var/lib/docker/containers/{ID}/config.v2.json",
        "var/lib/containers/storage/overlay-containers/containers.json",
        f"run/containerd/io.containerd.runtime.v2.task/default/{ID}/config.json",
        "etc/docker/daemon.json",
    ):
        write(tmp_path / path, content)
    assert names_of(tmp_path)(ID) is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/a\x1b[2Jb", "a\ufffd[2Jb"),
        ("x" * 500, "x" * 63 + "…"),
        ("/\u202eevil\n", "\ufffdevil\ufffd"),
        ("//", None),
    ],
)
def test_names_are_made_printable(tmp_path: Path, name: str, shown: str | None) -> None:
    """Docker restricts them; a file is still only a file."""
    docker(tmp_path, ID, name)
    assert names_of(tmp_path)(ID) == shown


# ---- looking up


def test_a_name_is_looked_up_once_and_an_unknown_id_again_later(tmp_path: Path) -> None:
    """What is known needs no file any more; what is not is not asked for at every process."""
    clock = Clock()
    names = names_of(tmp_path, clock)
    assert names(ID) is None
    own = docker(tmp_path, ID, "/web")
    assert names(ID) is None
    clock.now_s = 10.0
    assert names(ID) == "web"
    shutil.rmtree(own)
    assert names(ID) == "web"


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first."""
    monkeypatch.setattr(containers, "_KEPT_MAX", 2)
    names = names_of(tmp_path)
    ids = [f"{number:064x}" for number in range(3)]
    for each in ids:
        own = docker(tmp_path, each, f"/c{each[-1]}")
        assert names(each) == f"c{each[-1]}"
        shutil.rmtree(own)
    assert [names(each) for each in ids] == [None, "c1", "c2"]


def test_why_names_are_ids_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line, with every place that was looked at and what was there."""
    (tmp_path / "proc").mkdir()
    roots = (tmp_path / "absent", tmp_path)
    names = ContainerNames(roots, tmp_path / "proc", sanitize)
    assert names(ID) is None
    assert names(OTHER) is None
    (record,) = caplog.records
    assert f"({roots[0]}: No such file or directory; {roots[1]}: searched)" in record.getMessage()
    assert "container 4f1b2c3d5e6a is shown by its id" in record.getMessage()


@pytest.mark.skipif(os.geteuid() != 0, reason="missing feature: root")
def test_an_engine_s_own_command_line_tells_where_its_files_are(tmp_path: Path) -> None:
    """Also where process 1's root may not be seen: the engine's own is where its files are."""
    for pid, option in enumerate((("--data-root", "/srv/d"), ("--data-root=/srv/d",), ("-g", "/srv/d")), 1):
        host = tmp_path / str(pid)
        docker(host, ID, f"/web{pid}", "srv/d")
        add_process(tmp_path / "proc", pid, "dockerd", "/usr/bin/dockerd", "-H", "fd://", *option, root=host)
        names = ContainerNames((tmp_path / "absent",), tmp_path / "proc", sanitize)
        assert names(ID) == f"web{pid}"
        shutil.rmtree(tmp_path / "proc")


@pytest.mark.skipif(os.geteuid() != 0, reason="missing feature: root")
@pytest.mark.parametrize("change", ["user", "namespace", "gone"])
def test_who_merely_calls_himself_an_engine_is_not_believed(tmp_path: Path, change: str) -> None:
    """Another user's process, one in a PID namespace of its own, one that ended."""
    host, proc = tmp_path / "host", tmp_path / "proc"
    docker(host, ID, "/evil")
    add_process(proc, 7, "dockerd", "dockerd", root=host)
    if change == "user":
        os.chown(proc / "7", 1000, 1000)
    elif change == "namespace":
        (proc / "7/ns/pid").unlink()
        (proc / "7/ns/pid").symlink_to("pid:[4026532299]")
    else:
        shutil.rmtree(proc / "7/ns")
    assert ContainerNames((tmp_path / "absent",), proc, sanitize)(ID) is None


def test_a_monitor_s_command_line_tells_the_name(tmp_path: Path) -> None:
    """Podman's conmon has id and name; also where the user's files are not to be read."""
    names = names_of(tmp_path)
    add_process(
        tmp_path / "proc", 5, "conmon", "conmon", "--api-version", "1", "-c", ID, "-u", ID, "-n", "web"
    )
    add_process(tmp_path / "proc", 6, "conmon", "conmon", "-c")
    add_process(tmp_path / "proc", 8, "bash", "conmon", "-c", OTHER, "-n", "evil")
    assert names(ID) == "web"
    assert names(OTHER) is None


# ---- in passing


def test_a_container_that_is_gone_is_remembered(tmp_path: Path) -> None:
    """Created, named and removed between two ticks: its process is named when it is looked at."""
    docker(tmp_path, OTHER, "/old")
    names = names_of(tmp_path)
    names.start()
    try:
        own = docker(tmp_path, ID, "/draft")
        eventually(lambda: names._seen.get(ID) == "draft")
        docker(tmp_path, ID, "/job")  # Compose gives the final name after creating it
        eventually(lambda: names._seen.get(ID) == "job")
        shutil.rmtree(own)
        shutil.rmtree(tmp_path / "var/lib/docker/containers" / OTHER)
        assert names(ID) == "job"
        assert names(OTHER) == "old"  # it was there already when the agent came
    finally:
        names.close()
        names.close()


def test_a_podman_list_is_read_when_it_is_replaced(tmp_path: Path) -> None:
    """Written beside and moved over, as containers/storage does."""
    directory = tmp_path / "var/lib/containers/storage/overlay-containers"
    write(directory / "containers.json", [])
    names = names_of(tmp_path)
    names.start()
    try:
        write(directory / ".tmp", [{"id": ID, "names": ["job"]}])
        (directory / ".tmp").replace(directory / "volatile-containers.json")
        eventually(lambda: names._seen.get(ID) == "job")
        write(directory / "volatile-containers.json", [])
        assert names(ID) == "job"
    finally:
        names.close()


def test_an_engine_that_comes_later_is_watched_from_its_first_container_on(tmp_path: Path) -> None:
    """Found with the first id that is not known."""
    clock = Clock()
    names = names_of(tmp_path, clock)
    names.start()
    try:
        docker(tmp_path, OTHER, "/first")
        clock.now_s = 100.0
        assert names("b" * 64) is None
        own = docker(tmp_path, ID, "/job")
        eventually(lambda: ID in names._seen)
        shutil.rmtree(own)
        assert names(ID) == "job"
    finally:
        names.close()


def test_without_inotify_names_are_still_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine's instances may be used up; one line says what that costs."""

    class Refusing:
        @staticmethod
        def inotify_init1(_flags: int) -> int:
            return -1

    monkeypatch.setattr(container_watch, "_libc", Refusing)
    caplog.set_level("INFO")
    docker(tmp_path, ID, "/web")
    names = names_of(tmp_path)
    names.start()
    assert names(ID) == "web"
    names.close()
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
        "containers that live for a moment are shown by their ids"
    ]
