# SPDX-License-Identifier: Apache-2.0
"""kernel.attach.CgroupSkb: programs on every packet of this machine's sockets, and nothing left of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bpfids import all_ids, left_behind
from harness import ROOT, wait_until

from kernob.errors import AttachError
from kernob.kernel import cgroup_root, privileges
from kernob.kernel.attach import CgroupSkb, Hook, all_of, first_of
from kernob.kernel.session import KernelOptions, Session
from kernob.model import HookReport, ProbeState

pytestmark = pytest.mark.lane

# packets: UDP destination port, plus 1 << 16 for those that leave -> packets, then the bytes of them
PROGRAMS = """
BPF_TABLE("hash", u32, u64, packets, 64);
BPF_TABLE("hash", u32, u64, lengths, 64);

static __always_inline int on_packet(struct __sk_buff *skb, u32 way)
{
    u8 first = 0, proto = 0;
    u16 port = 0;

    bpf_skb_load_bytes(skb, 0, &first, 1);
    int v6 = first >> 4 == 6;
    bpf_skb_load_bytes(skb, v6 ? 6 : 9, &proto, 1);
    if (proto != IPPROTO_UDP || bpf_skb_load_bytes(skb, (v6 ? 40 : (first & 15) * 4) + 2, &port, 2))
        return 1;
    u32 key = way << 16 | __builtin_bswap16(port);
    u64 *count = packets.lookup(&key), *length = lengths.lookup(&key);
    if (count)
        __sync_fetch_and_add(count, 1);
    if (length)
        __sync_fetch_and_add(length, skb->len);
    return 1;
}
int skb__in(struct __sk_buff *skb) { return on_packet(skb, 0); }
int skb__out(struct __sk_buff *skb) { return on_packet(skb, 1); }
"""
HOOKS = (
    first_of("test", "in", all_of(CgroupSkb("ingress", "skb__in"))),
    first_of("test", "out", all_of(CgroupSkb("egress", "skb__out"))),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The programs as a file; Session takes any path."""
    path = tmp_path_factory.mktemp("cgroup") / "packets.bpf.c"
    path.write_text(PROGRAMS)
    return str(path)


def open_session(source: str, hooks: tuple[Hook, ...] = HOOKS, **options: object) -> Session:
    """Both programs, compiled once."""
    chosen = KernelOptions(cache_dir=Path(source).parent, capacities={"socks": 64}, **options)  # type: ignore[arg-type]
    return Session((source,), hooks, chosen)


def report_of(source: str) -> HookReport:
    """What became of the first hook."""
    with open_session(source) as session:
        return session.reports[0]


def figures(session: Session, port: int) -> list[tuple[int, int]]:
    """(packets, bytes with IP headers) to a UDP port, received and then sent."""
    keys = (port, 1 << 16 | port)
    return [
        tuple(int.from_bytes(session.map(m).lookup(k) or b"", "little") for m in ("packets", "lengths"))  # type: ignore[misc]
        for k in keys
    ]


def send_counted(session: Session, sock: socket.socket, count: int, size: int) -> list[tuple[int, int]]:
    """Sends datagrams to a socket of our own, reads them, and returns what was seen of that."""
    port = sock.getsockname()[1]
    for name in ("packets", "lengths"):
        session.map(name).update(port, 0)
        session.map(name).update(1 << 16 | port, 0)
    with socket.socket(sock.family, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(b"x" * size, sock.getsockname())
            assert len(sock.recv(size + 1)) == size
    return figures(session, port)


@pytest.mark.parametrize(("host", "header"), [("127.0.0.1", 28), ("::1", 48)])
def test_every_packet_is_seen_once_each_way_and_none_is_lost(source: str, host: str, header: int) -> None:
    """23 datagrams of 100 bytes: 23 packets in, 23 out, with their IP and UDP headers; v4 and v6."""
    with open_session(source) as session:
        assert [r.strategy for r in session.reports] == ["cgroup_skb:ingress", "cgroup_skb:egress"]
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
            sock.settimeout(5)
            seen = send_counted(session, sock, count=23, size=100)
    assert seen == [(23, 23 * (100 + header))] * 2


def test_two_agents_see_the_same_packets_and_neither_ends_the_other(source: str) -> None:
    """Programs stand side by side; the first to go leaves the second's figures as they are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, open_session(source) as second:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        with open_session(source) as first:
            assert send_counted(first, sock, count=5, size=10)[0][0] == 5
        assert send_counted(second, sock, count=7, size=10)[0][0] == 7


def test_nothing_is_left_behind(source: str) -> None:
    """Neither programs nor links, also where the process that attached them was killed."""
    before = all_ids()
    with open_session(source):
        assert any(kind == "link" for kind, _number in all_ids() - before)
    child = os.fork()
    if not child:
        with open_session(source):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    wait_until(lambda: left_behind(before) == set(), "the kernel to free them")


def test_without_the_capability_the_hook_says_what_it_needs(source: str) -> None:
    """CAP_BPF and CAP_PERFMON alone are not enough; everything else would go on."""
    keep = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
    report = privileges.confined(lambda: report_of(source), keep[:2] + keep[3:])
    assert report.state is ProbeState.FAILED
    assert report.attempts[0].reason == "ingress: cgroup_skb: not permitted (needs CAP_NET_ADMIN)"
    few = (*keep[:2], keep[3], "CAP_NET_ADMIN")
    assert privileges.confined(lambda: report_of(source), few).state is ProbeState.ATTACHED


def test_it_can_be_switched_off(source: str) -> None:
    """By its kind's name, as every strategy."""
    with open_session(source, kinds_off=frozenset({"cgroup_skb"})) as session:
        assert [r.attempts[0].reason for r in session.reports] == ["switched off: cgroup_skb"] * 2


SCRIPT = (
    "import os, pathlib, sys; from kernob.kernel import cgroup_root\n"
    "before = open('/proc/self/mounts').read()\n"
    "print(os.fstat(cgroup_root.open_root(pathlib.Path(sys.argv[1]))).st_ino)\n"
    "assert open('/proc/self/mounts').read() == before\n"
)


@pytest.mark.parametrize(
    ("options", "hide"),
    [
        pytest.param("-m", "umount -q -R /sys/fs/cgroup", id="mounted nowhere here"),
        pytest.param("-mC", "umount -q -R /sys/fs/cgroup", id="control group namespace, mounted nowhere"),
        pytest.param(
            "-mC",
            "umount -q -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup",
            id="a container's view: the mount shows its own control group",
        ),
    ],
)
def test_the_root_is_found_wherever_it_is(tmp_path: Path, options: str, hide: str) -> None:
    """Also in a container: by the host's mounts or one of our own, which nobody else sees."""
    (tmp_path / "1").symlink_to(f"/proc/{os.getpid()}")  # stands for the host's first process
    home = Path("/sys/fs/cgroup/unified" if Path("/sys/fs/cgroup/unified").exists() else "/sys/fs/cgroup")
    group = home / f"kernob-test-{os.getpid()}"
    group.mkdir()
    try:
        join = f'echo $$ > {group}/cgroup.procs; exec unshare {options} sh -c \'{hide}; exec "$@"\' sh "$@"'
        command = ["sh", "-c", join, "sh", sys.executable, "-c", SCRIPT, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("1\n", "")
    finally:
        group.rmdir()


def test_where_it_cannot_be_reached_every_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No host to look at, nothing mounted, no right to mount: one line says all of it."""
    monkeypatch.setattr(cgroup_root, "_mounted", lambda proc_root: iter([tmp_path, tmp_path / "none"]))
    with pytest.raises(AttachError) as caught:
        privileges.confined(lambda: cgroup_root.open_root(tmp_path))
    assert str(caught.value) == (
        f"the root of the cgroup2 hierarchy cannot be reached ({tmp_path} is the root of a control group "
        f"namespace only; {tmp_path}/none: No such file or directory; "
        "Kernob may not mount its own: Operation not permitted)"
    )
