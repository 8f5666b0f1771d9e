# SPDX-License-Identifier: Apache-2.0
"""Services get the name an operator would use: container, unit, script, executable, in this order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernob.model import ProcessInfo, ProcessKey
from kernob.state.names import container_of, needs_full_args, sanitize, service_of

ID = "4f1b2c3d5e6a" + "7" * 52
OTHER_ID = "0a9b8c7d6e5f" + "1" * 52
POD = "7f3c1d2e-0b4a-4c5d-9e6f-112233445566"
POD_ = POD.replace("-", "_")
LOGIN = "/user.slice/user-1000.slice/session-3.scope"


def process(
    cgroup: str = "/", command: str = "", executable: str = "prog", comm: str = "", pid: int = 4711
) -> ProcessInfo:
    """Build a process in `cgroup` with a command line whose arguments are divided by blanks."""
    return ProcessInfo(
        key=ProcessKey(pid, 100, 0),
        executable=executable,
        comm=comm or executable[:15],
        args=tuple(command.split()),
        cgroup=tuple(part for part in cgroup.split("/") if part),
    )


@pytest.mark.parametrize(
    "cgroup",
    [
        pytest.param(
            f"/system.slice/docker-{ID}.scope", id="Docker, v2, systemd driver (Debian 12, Ubuntu 22)"
        ),
        pytest.param(f"/docker/{ID}", id="Docker, v1 or cgroupfs driver (Ubuntu 20, Alpine)"),
        pytest.param(f"/docker/{ID}/system.slice/nginx.service", id="systemd inside Docker"),
        pytest.param(
            f"/system.slice/docker-{OTHER_ID}.scope/docker/{ID}", id="Docker in Docker: the inner one"
        ),
        pytest.param(
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
            id="rootless Docker",
        ),
        pytest.param(f"/machine.slice/libpod-{ID}.scope/container", id="Podman, root, v2"),
        pytest.param(
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
            id="Podman, rootless",
        ),
        pytest.param(f"/libpod_parent/libpod-{ID}", id="Podman, cgroupfs"),
        pytest.param(f"/kubepods/besteffort/pod{POD}/{ID}", id="k3s, v1 or cgroupfs"),
        pytest.param(
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice/cri-containerd-{ID}.scope",
            id="Kubernetes, containerd, systemd driver",
        ),
        pytest.param(f"/kubepods.slice/kubepods-pod{POD_}.slice/crio-{ID}.scope", id="Kubernetes, CRI-O"),
        pytest.param(
            f"/system.slice/containerd.service/kubepods-besteffort-pod{POD_}.slice:cri-containerd:{ID}",
            id="containerd with mismatched drivers",
        ),
        pytest.param(f"/system.slice/k3s.service/kubepods/besteffort/pod{POD}/{ID}", id="k3s, rootless"),
        pytest.param(f"/default/{ID}", id="nerdctl, cgroupfs"),
        pytest.param(f"/system.slice/nerdctl-{ID}.scope", id="nerdctl, systemd"),
        pytest.param(f"/system.slice/docker-{ID[:40]}.scope", id="an id cut short on its way"),
        pytest.param(f"/ecs/{POD}/{ID}", id="ECS"),
        pytest.param(f"docker-{ID}.scope", id="only the last name of the path is known"),
    ],
)
def test_a_container_without_a_known_name_is_its_short_id(cgroup: str) -> None:
    """The id's first twelve digits stand for a container, as `docker ps` prints them."""
    assert service_of(process(cgroup, "python3 app.py", "python3.11")) == "4f1b2c3d5e6a"


def test_a_container_has_the_name_its_runtime_knows() -> None:
    """The injected look-up is asked for the full id; Docker's leading slash goes."""
    asked: list[str] = []

    def names(container_id: str) -> str:
        asked.append(container_id)
        return "/shop-web-1"

    info = process(f"/system.slice/docker-{ID}.scope", "nginx: worker process", "nginx")
    assert service_of(info, names) == "shop-web-1"
    assert asked == [ID]
    assert service_of(info, lambda _: None) == "4f1b2c3d5e6a"
    assert service_of(info, lambda _: "evil\x1b[2J\nname") == "evil\ufffd[2J\ufffdname"


@pytest.mark.parametrize(
    ("cgroup", "name"),
    [
        pytest.param("/lxc.payload.web1", "web1", id="LXC 4, v2"),
        pytest.param("/lxc.payload.web1/system.slice/nginx.service", "web1", id="systemd inside LXC"),
        pytest.param("/lxc.payload.web1/ns/init.scope", "web1", id="LXC with an inner namespace"),
        pytest.param("/lxc/101/ns/system.slice/cron.service", "101", id="Proxmox container"),
        pytest.param("/lxc.payload/db", "db", id="LXC 3"),
        pytest.param("/machine.slice/machine-build\\x2dbox.scope", "build-box", id="machinectl"),
        pytest.param("/machine.slice/systemd-nspawn@web.service/payload", "web", id="nspawn unit"),
        pytest.param(
            "/machine.slice/systemd-nspawn@build\\x2dbox.service/payload/system.slice/sshd.service",
            "build-box",
            id="systemd inside nspawn",
        ),
        pytest.param(
            "/machine.slice/machine-qemu\\x2d3\\x2dvm\\x2dweb.scope/libvirt/emulator", "vm-web", id="libvirt"
        ),
        pytest.param("/machine/qemu-3-vm1.libvirt-qemu/emulator", "vm1", id="libvirt without machined"),
        pytest.param(f"/nomad.slice/share.slice/{POD}.web.scope", "web", id="Nomad"),
        pytest.param("/docker/buildkit/x1y2z3w4v5u6t7s8r9q0ponml", "buildkit", id="docker build, cgroupfs"),
        pytest.param(
            "/system.slice/docker-x1y2z3w4v5u6t7s8r9q0ponml.scope", "buildkit", id="docker build, systemd"
        ),
        pytest.param(f"/system.slice/web.service/libpod-payload-{ID}", "web", id="Podman Quadlet"),
    ],
)
def test_a_container_whose_path_tells_its_name_has_it(cgroup: str, name: str) -> None:
    """Where the path itself names the container, no look-up is needed."""
    assert service_of(process(cgroup, "python3 app.py", "python3.11")) == name


@pytest.mark.parametrize(
    "cgroup",
    [
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/system.slice/crio-conmon-{ID}.scope",
        "/lxc.monitor.web1",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-{ID}.scope",
    ],
)
def test_a_runtime_s_monitor_is_not_in_the_container(cgroup: str) -> None:
    """conmon and lxc's monitor run on the host, although their groups carry the container's id or name."""
    assert service_of(process(cgroup, executable="conmon")) == "conmon"
    assert container_of(process(cgroup).cgroup) is None


@pytest.mark.parametrize(
    ("cgroup", "name"),
    [
        pytest.param("/system.slice/nginx.service", "nginx", id="Debian 12"),
        pytest.param("/system.slice/php8.2-fpm.service", "php8.2-fpm", id="a version in the name stays"),
        pytest.param(
            "/system.slice/system-postgresql.slice/postgresql@15-main.service",
            "postgresql@15-main",
            id="instance",
        ),
        pytest.param("/system.slice/my\\x2dshop.service", "my-shop", id="escaped"),
        pytest.param("/system.slice/caf\\xc3\\xa9.service", "café", id="escaped UTF-8"),
        pytest.param("/system.slice/_memory.service", "memory", id="systemd hides names of kernel files"),
        pytest.param("/system.slice/docker.service", "docker", id="the runtime itself"),
        pytest.param("/system.slice/k3s.service", "k3s", id="k3s itself"),
        pytest.param("/system.slice/foo.service/worker/3", "foo", id="delegated groups below"),
        pytest.param(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/bot.service", "bot", id="user unit"
        ),
        pytest.param(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-shop.slice/shop@eu.service",
            "shop@eu",
            id="user instance",
        ),
        pytest.param("/system.slice/snap.lxd.daemon.service", "snap.lxd.daemon", id="snap (Ubuntu)"),
        pytest.param(
            "/system.slice/git-daemon@3-10.0.0.1:9418-10.0.0.2:51234.service", "git-daemon", id="inetd, v4"
        ),
        pytest.param(
            "/system.slice/git@3-77-2001:db8::1:22-2001:db8::2:5000.service", "git", id="inetd, v6, cookie"
        ),
        pytest.param("/system.slice/notify@3-1234-1000.service", "notify", id="inetd, Unix: PID and UID"),
        pytest.param(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-mail@" + "0f" * 16 + ".service",
            "app-mail",
            id="a random instance",
        ),
        pytest.param(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/dbus-:1.2-org.example.Sync@0.service",
            "org.example.Sync",
            id="started by D-Bus",
        ),
        pytest.param("/openrc.nginx", "nginx", id="OpenRC, v2 (Alpine)"),
        pytest.param("/openrc/nginx", "nginx", id="OpenRC, v1"),
    ],
)
def test_outside_containers_the_unit_names_the_service(cgroup: str, name: str) -> None:
    """The innermost unit gives the name, without ".service" and without what one connection adds."""
    assert service_of(process(cgroup, "python3 /srv/x/app.py", "python3.11")) == name


@pytest.mark.parametrize(
    "cgroup",
    [
        pytest.param("/", id="no control groups, or plain init"),
        pytest.param("/init.scope", id="init.scope"),
        pytest.param(LOGIN, id="ssh session, nohup, screen"),
        pytest.param("/user.slice/user-1000.slice/user@1000.service/init.scope", id="systemd --user itself"),
        pytest.param(
            "/user.slice/user-1000.slice/user@1000.service/tmux-spawn-1b2c.scope", id="tmux with systemd"
        ),
        pytest.param(
            "/user.slice/user-0.slice/user@0.service/app.slice/run-u37.scope", id="systemd-run --scope"
        ),
        pytest.param(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-x-99.scope", id="desktop"
        ),
        pytest.param("/system.slice/cron.service", id="cron, Debian"),
        pytest.param("/system.slice/crond.service", id="cron, Red Hat"),
        pytest.param("/system.slice/cronie.service", id="cronie"),
        pytest.param("/system.slice/anacron.service", id="anacron"),
        pytest.param("/system.slice/atd.service", id="at"),
        pytest.param("/system.slice/pm2-ubuntu.service", id="pm2"),
        pytest.param("/system.slice/pm2.service", id="pm2 without user"),
        pytest.param("/system.slice/supervisor.service", id="supervisord, Debian"),
        pytest.param("/system.slice/supervisord.service", id="supervisord"),
        pytest.param("/system.slice/runit.service", id="runit"),
        pytest.param("/system.slice/s6.service", id="s6"),
        pytest.param("/system.slice/s6-svscan.service", id="s6-svscan"),
        pytest.param("/system.slice/ssh.service", id="ssh without pam_systemd"),
        pytest.param(
            "/system.slice/system-sshd.slice/sshd@5-10.0.0.1:22-10.0.0.2:5000.service", id="ssh by socket"
        ),
        pytest.param("/system.slice/system-getty.slice/getty@tty1.service", id="console"),
        pytest.param("/system.slice/rc-local.service", id="rc.local"),
        pytest.param("/system.slice/cloud-final.service", id="cloud-init's user data"),
        pytest.param("/system.slice/run-r0f1e2d3c4b5a.service", id="systemd-run, random name"),
        pytest.param("/system.slice/run-u12.service", id="systemd-run, numbered"),
        pytest.param("/system.slice/run-p4711-i12.service", id="systemd-run, newer, with the PID"),
        pytest.param("/openrc.crond", id="cron under OpenRC"),
        pytest.param("/process_api/3b95cca214f48f7784b74696cdc3e004", id="groups nobody knows"),
    ],
)
def test_units_that_only_host_others_name_nobody(cgroup: str) -> None:
    """In a session, under cron or a process manager, the program itself is the service."""
    assert service_of(process(cgroup, "python3 /srv/x/app.py", "python3.11")) == "app.py"
    assert service_of(process(cgroup, "rsync -a a b", "rsync")) == "rsync"


@pytest.mark.parametrize(
    ("executable", "comm", "args", "name"),
    [
        pytest.param("", "kworker/0:1-events", (), "kworker", id="kernel thread"),
        pytest.param("kworker/0:1", "kworker/0:1", (), "kworker", id="kernel thread, comm for executable"),
        pytest.param("?", "nfsd", (), "nfsd", id="kernel thread, executable unknown"),
        pytest.param("", "", (), "?", id="nothing known"),
        pytest.param("?", "?", (), "?", id="nothing known, sanitised"),
        pytest.param("", "nginx", ("nginx: master process /usr/sbin/nginx",), "nginx", id="exe not readable"),
        pytest.param(
            "", "python3", ("/usr/bin/python3", "app.py"), "app.py", id="exe not readable, interpreter"
        ),
        pytest.param("exe", "runc:[2:INIT]", (), "runc:[2:INIT]", id="re-executed from memory"),
        pytest.param("memfd:runc_cloned:/proc/self/exe", "runc", ("runc", "init"), "runc", id="memfd"),
        pytest.param("nginx (deleted)", "nginx", (), "nginx", id="upgraded while it ran"),
        pytest.param("python3.11", "report.py", (), "report.py", id="no arguments, script named by #!"),
        pytest.param("python3.11", "python3", (), "python", id="no arguments at all"),
        pytest.param("node", "MainThread", (), "node", id="node's main thread"),
        pytest.param("python3.11", "python3", ("", "", ""), "python", id="arguments wiped"),
        pytest.param("python3.11", "x", ("/opt/my app/bin/python3", "a.py"), "a.py", id="blank in the path"),
        pytest.param("~other", "x", (), "_other", id="a name that is Kernob's own"),
        pytest.param("evil\x1b[31m", "x", (), "evil\ufffd[31m", id="escape sequence"),
    ],
)
def test_whatever_is_missing_there_is_a_name(
    executable: str, comm: str, args: tuple[str, ...], name: str
) -> None:
    """Kernel threads, deleted and unreadable executables and wiped arguments still get a lasting name."""
    assert service_of(ProcessInfo(ProcessKey(4711, 1, 0), executable, comm, args)) == name


def test_in_a_unit_or_container_no_arguments_are_needed() -> None:
    """Where the control group tells the name, a short command line is no reason to read more."""
    args = ("java", "-cp", "/opt/…")
    for cgroup in (("system.slice", "kafka.service"), ("docker", ID)):
        assert not needs_full_args(ProcessInfo(ProcessKey(1, 1, 0), "java", "java", args, cgroup))


WORDS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "-c",
            "-m",
            "-jar",
            "-",
            "--",
            "-u",
            "/",
            ".",
            "..",
            "",
            "…",
            "python3",
            "env",
            "exec",
            "a.service",
            "docker",
        ]
    ),
)


@settings(deadline=None)
@given(
    st.sampled_from(
        ["python3.11", "node", "java", "ruby", "php", "perl", "bash", "busybox", "deno", "", "x"]
    ),
    st.text(max_size=20),
    st.lists(WORDS, max_size=6),
    st.lists(st.one_of(WORDS, st.sampled_from([f"docker-{ID}.scope", "lxc", "x\\xff.service"])), max_size=5),
)
def test_no_process_is_without_a_clean_name(
    executable: str, comm: str, args: list[str], cgroup: list[str]
) -> None:
    """Any strings at all give 1 to 64 printable characters that do not begin with "~"."""
    info = ProcessInfo(ProcessKey(987654321, 1, 0), executable, comm, tuple(args), tuple(cgroup))
    name = service_of(info)
    assert name == sanitize(name)
    assert not name.startswith("~")
    assert needs_full_args(info) in (True, False)


@settings(deadline=None)
@given(st.integers(1, 2**22))
def test_the_pid_never_reaches_the_name(pid: int) -> None:
    """Two processes that differ only in their PID belong to one service."""
    for command in ("node app.js", "python3 -m shop", "java -jar a.jar"):
        info = process(LOGIN, command, command.split()[0], pid=pid)
        assert service_of(info) == service_of(process(LOGIN, command, command.split()[0], pid=1))
