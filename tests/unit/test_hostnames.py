# SPDX-License-Identifier: Apache-2.0
"""state.hostnames: what an address was called, by whom, and for how long."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernob.kernel.hosts_files import HostsFiles, parse_hosts
from kernob.model import Name, NameSource
from kernob.state.destinations import decode_destination
from kernob.state.hostname_text import MAX_NAME, name_id, normalise
from kernob.state.hostnames import HOST, HostNames, netns_scope, process_scope
from kernob.state.known import Known
from tests.unit.tcp_events import flow_key, resolve

API, DB = Name("api.example", NameSource.GETADDRINFO), Name("db.example", NameSource.GETADDRINFO)
WIRE = Name("lb-7.internal.example", NameSource.DNS)
ME, OTHER, NETNS = process_scope(4711, 77), process_scope(4712, 78), netns_scope(1)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def names(**options: float) -> tuple[HostNames, Clock]:
    clock = Clock()
    return HostNames(clock, **options), clock  # type: ignore[arg-type]


def host(table: HostNames, address: str = "10.0.0.7", pid: int = 4711, netns: int = 1) -> str:
    found = table.of(pid, 77 if pid == 4711 else 78, netns, address)
    return found.host if found else ""


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"API.Example.COM.", "api.example.com"),
        (b"localhost", "localhost"),
        (b"_sip._tcp.example", "_sip._tcp.example"),
        (b"3scale.net", "3scale.net"),
        ("b\u00fccher.example".encode(), "xn--bcher-kva.example"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"", ""),
        (b".", ""),
        (b"a..b", ""),
        (b"10.1.2.3", ""),
        (b"127.1", ""),
        (b"0x7f000001", ""),
        (b"0x7f.0.0.1", ""),
        (b"2001:db8::1", ""),
        (b"fe80::1%eth0", ""),
        (b"-a.example", ""),
        (b"a b.example", ""),
        (b"a\x1b[31m.example", ""),
        (b"a\0.example", ""),
        (b"\xff\xfe.example", ""),
        (b"x" * 64 + b".example", ""),
        (b"x" * 63 + b".example", "x" * 63 + ".example"),
    ],
)
def test_names_have_one_form_or_none(raw: bytes, expected: str) -> None:
    """Case, trailing dot and script do not make two names; addresses and hostile bytes make none."""
    assert normalise(raw) == expected


@given(st.binary(max_size=400) | st.text(max_size=300).map(str.encode))
def test_whatever_comes_out_is_a_hostname(raw: bytes) -> None:
    """Never raises; the result is bounded, harmless, and its own normal form."""
    text = normalise(raw)
    assert len(text) <= MAX_NAME
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert normalise(text.encode()) == text


def test_name_ids_are_fnv_1a() -> None:
    """The published test vectors of the hash that bpf/names.bpf.c computes, too."""
    assert name_id(b"a") == 0xAF63DC4C8601EC8C
    assert name_id(b"foobar") == 0x85944171F73967E8


def test_a_rotating_address_keeps_its_name() -> None:
    """Every address a name ever had in its time is known by it."""
    table, clock = names()
    for last in range(1, 9):
        table.learn((ME,), (f"10.0.0.{last}",), API)
        clock.now += 1
    assert [host(table, f"10.0.0.{last}") for last in range(1, 9)] == ["api.example"] * 8


def test_two_processes_keep_two_names_of_one_address_apart() -> None:
    """A load balancer's address is called by each process what that process asked for."""
    table, _clock = names()
    table.learn((ME, NETNS, HOST), ("10.0.0.7",), API)
    table.learn((OTHER, NETNS, HOST), ("10.0.0.7",), DB)
    assert (host(table), host(table, pid=4712), host(table, pid=9)) == (
        "api.example",
        "db.example",
        "db.example",
    )


def test_one_process_calls_an_address_what_it_last_asked_for() -> None:
    """By time: the later answer of two counts for what begins later."""
    table, _clock = names()
    table.learn((ME,), ("10.0.0.7",), API)
    assert host(table) == "api.example"
    table.learn((ME,), ("10.0.0.7",), DB)
    assert host(table) == "db.example"


def test_a_network_namespace_comes_before_the_host() -> None:
    """Containers that use one address for different things do not mix theirs up."""
    table, _clock = names()
    table.learn((netns_scope(1), HOST), ("172.17.0.2",), API)
    table.learn((netns_scope(2), HOST), ("172.17.0.2",), DB)
    assert [host(table, "172.17.0.2", 5, netns) for netns in (1, 2, 3)] == [
        "api.example",
        "db.example",
        "db.example",
    ]


def test_loopback_belongs_to_the_process_that_asked() -> None:
    """One program that resolves localhost does not rename everybody's 127.0.0.1."""
    table, _clock = names()
    table.learn((ME, NETNS, HOST), ("127.0.0.1", "::1"), Name("localhost", NameSource.GETADDRINFO))
    assert (host(table, "127.0.0.1"), host(table, "127.0.0.1", pid=9)) == ("localhost", "")


def test_the_wire_does_not_rename_what_the_process_asked_for() -> None:
    """Behind `db` stands a search domain or an alias; the program said `db`."""
    table, clock = names(grace_s=60)
    table.learn((ME,), ("10.0.0.7",), DB, ttl_s=10)
    assert table.learn((ME, HOST), ("10.0.0.7",), WIRE, ttl_s=600) == [(HOST, "10.0.0.7")]
    assert host(table) == "db.example"
    clock.now += 71
    assert host(table) == WIRE.host


def test_answers_hold_for_their_ttl_and_a_grace() -> None:
    """Pools outlive a TTL; an address is not called by an old name for ever."""
    table, clock = names(grace_s=100)
    table.learn((ME,), ("10.0.0.7",), API, ttl_s=50)
    clock.now += 149
    assert host(table) == "api.example"
    clock.now += 1
    assert host(table) == ""
    assert len(table) == 0


def test_an_operators_names_come_first() -> None:
    """Configured before what the process connected to, and before everything learned."""
    table, _clock = names()
    table.learn((ME,), ("10.0.0.7", "10.0.0.8"), API)
    table.configure({"10.0.0.7": Name("vault", NameSource.CONFIGURED)})
    assert [host(table, f"10.0.0.{last}") for last in (7, 8, 9)] == ["vault", "api.example", ""]
    assert table.of(4711, 77, 1, "10.0.0.7", DB) == Name("vault", NameSource.CONFIGURED)
    assert table.of(4711, 77, 1, "10.0.0.8", DB) == DB


def test_hosts_files_name_by_the_first_name_of_a_line() -> None:
    """hosts(5): comments, several names, both families; loopback and damage say nothing."""
    lines = (
        b"127.0.0.1 localhost", b"::1 localhost", b"10.0.0.7 db db.example # c", b"10.0.0.7 other",
        b"fd00::0007\tsix", b"#10.0.0.8 x", b"x y", b"10.0.0.9", b"\xff\xfe z",
    )  # fmt: skip
    text = b"\n".join(lines)
    assert parse_hosts(text) == {"10.0.0.7": b"db", "fd00::7": b"six"}


def test_a_hosts_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    """Each process its own; at most once in a few seconds; one that ended has none."""
    file, clock = tmp_path / "7" / "root" / "etc" / "hosts", Clock()
    file.parent.mkdir(parents=True)
    file.write_text("10.0.0.7 db")
    files = HostsFiles(tmp_path, clock)
    assert (files.name_of(7, "10.0.0.7"), files.name_of(8, "10.0.0.7")) == (b"db", b"")
    file.write_text("10.0.0.7 database")
    assert files.name_of(7, "10.0.0.7") == b"db"
    clock.now += 5
    assert files.name_of(7, "10.0.0.7") == b"database"
    file.unlink()
    file.mkdir()
    clock.now += 5
    assert files.name_of(7, "10.0.0.7") == b""


def test_hosts_files_are_bounded_whatever_is_written_to_them(tmp_path: Path) -> None:
    """One that is rewritten all the time is kept once, and read once in 5 s; large ones make others go."""
    clock = Clock()
    files = HostsFiles(tmp_path, clock)
    shared = tmp_path / "hosts"
    shared.write_text("10.0.0.1 a0")
    for pid in range(1, 11):
        folder = tmp_path / str(pid) / "root" / "etc"
        folder.mkdir(parents=True)
        (folder / "hosts").hardlink_to(shared)
    assert [files.name_of(1, "10.0.0.1"), len(files)] == [b"a0", 1]
    for pid in range(2, 11):
        shared.write_text(f"10.0.0.1 a{pid}{'x' * pid}")
        assert files.name_of(pid, "10.0.0.1") == b"a0"
    clock.now += 5
    assert [files.name_of(2, "10.0.0.1"), len(files)] == [b"a10" + b"x" * 10, 1]
    for number in range(20, 30):
        folder = tmp_path / str(number) / "root" / "etc"
        folder.mkdir(parents=True)
        lines = (f"10.{i >> 16}.{i >> 8 & 255}.{i & 255} h\n" for i in range(30_000))
        (folder / "hosts").write_text("".join(lines))
        files.name_of(number, "10.0.0.1")
    assert files.name_of(29, "10.0.0.9") == b"h"
    assert 20_000 < len(files) <= 65_536
    cut = tmp_path / "29" / "root" / "etc" / "hosts"
    cut.write_text("#" * ((1 << 18) - 12) + "\n10.9.9.9 database\n")
    clock.now += 5
    assert files.name_of(29, "10.9.9.9") == b""
    cut.write_text("#" * ((1 << 18) - 30) + "\n10.9.9.9 database\n")
    clock.now += 5
    assert files.name_of(29, "10.9.9.9") == b"database"


def test_the_least_used_go_first_and_are_counted() -> None:
    """A name that is asked for stays; what was lost though it still held is told."""
    table, _clock = names(capacity=3)
    for last in (1, 2, 3):
        table.learn((ME,), (f"10.0.0.{last}",), API)
    assert host(table, "10.0.0.1")
    table.learn((ME,), ("10.0.0.4", "0.0.0.0"), DB)
    assert (host(table, "10.0.0.2"), host(table, "10.0.0.1")) == ("", "api.example")
    assert (len(table), table.evicted) == (3, 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from((ME, OTHER, NETNS, HOST)),
            st.integers(1, 6),
            st.sampled_from((API, DB)),
            st.integers(0, 90),
        ),
        max_size=60,
    )
)
def test_the_answer_is_the_latest_of_the_narrowest_scope(
    learned: list[tuple[tuple[str, int, int], int, Name, int]],
) -> None:
    """Against the plain model: go through all that was learned, scope by scope, newest first."""
    table, clock = names(grace_s=30.0)
    log: list[tuple[object, str, Name, float]] = []
    for scope, last, name, wait in learned:
        clock.now += wait
        table.learn((scope,), (f"10.0.0.{last}",), name, ttl_s=60)
        log.append((scope, f"10.0.0.{last}", name, clock.now + 90))
    for last in range(1, 7):
        latest = [
            next(
                ((n, until) for s, a, n, until in reversed(log) if s == scope and a == f"10.0.0.{last}"), None
            )
            for scope in (ME, NETNS, HOST)
        ]
        expected = next((n.host for n, until in filter(None, latest) if until > clock.now), "")
        assert host(table, f"10.0.0.{last}") == expected


def test_a_client_is_named_and_a_server_is_not() -> None:
    """server.address is the hostname; the peer stays what it is; whoever connects to us has no name here."""
    there = decode_destination(flow_key(peer="10.0.0.7")).named(API)
    assert dict(there.where) == {"server.address": "api.example", "server.port": 5672}
    assert (there.host, there.address, there.peer, there.name_source) == (
        "api.example", "10.0.0.7", "10.0.0.7", NameSource.GETADDRINFO,
    )  # fmt: skip
    server = decode_destination(flow_key(peer="10.0.0.7", role=2))
    assert server.named(API) is server


def test_a_flow_keeps_the_name_it_was_first_known_by() -> None:
    """What is learned later is for later flows: a series never changes its name."""
    known = Known(resolve)
    said = [API]
    known.name_by(lambda _process, _there: said[0])
    key = flow_key()
    process = known.processes.of(key[:10])
    assert known.there(process, key).host == "api.example"
    known.flows._add(key)
    known.learn()
    said[0] = DB
    assert known.destination(0).host == "api.example"
    assert known.there(process, key).host == "api.example"
    assert known.there(process, flow_key(port=80)).host == "db.example"
