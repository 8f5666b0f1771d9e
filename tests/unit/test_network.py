# SPDX-License-Identifier: Apache-2.0
"""The network file: what it says of destinations and processes, and every mistake with its place."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kernob.commands.network import network
from kernob.errors import ConfigError
from kernob.model import Name, NameSource, PeerClass, ProcessInfo, ProcessKey
from kernob.state import network_text
from kernob.state.hostnames import HostNames
from kernob.state.known import Known
from kernob.state.network import NetworkFile, PeerRule, as_network
from kernob.state.peers import peer_class
from tests.unit.tcp_events import flow_key, resolve

EXAMPLE = Path(__file__).parents[2] / "docs" / "network.toml"
TEXT = """
[[class]]
class = "self-hosted"
networks = ["203.0.113.0/24", "2001:db8::/32"]

[[class]]
class = "internal"
hosts = ["*.Corp.example"]
ports = [5432, "8000-8100"]

[names]
"203.0.113.7" = "Vault.corp.example."

[[long_poll]]
hosts = ["events.*"]
ports = [443]

[[service]]
name = "billing"
command = "*billing.py*"

[[service]]
name = "legacy"
cgroup = "/system.slice/app-*"
ports = [8080]
"""
NETWORKS = st.ip_addresses(v=4).map(lambda address: ipaddress.IPv4Network((int(address) & ~255, 24)))


def info(args: tuple[str, ...] = (), cgroup: tuple[str, ...] = ()) -> ProcessInfo:
    return ProcessInfo(ProcessKey(1, 1, 1), "python3", "python3", args, cgroup)


def test_the_example_is_right() -> None:
    """docs/network.toml loads and has nothing odd."""
    assert network_text.load(EXAMPLE).warnings() == []


@pytest.mark.parametrize(
    ("address", "host", "port", "expected"),
    [
        ("203.0.113.9", "", 443, PeerClass.SELF_HOSTED),
        ("::ffff:203.0.113.9", "", 443, PeerClass.SELF_HOSTED),
        ("2001:db8::9", "", 0, PeerClass.SELF_HOSTED),
        ("198.51.100.1", "db.corp.example", 5432, PeerClass.INTERNAL),
        ("198.51.100.1", "db.corp.example", 8100, PeerClass.INTERNAL),
        ("198.51.100.1", "db.corp.example", 8101, PeerClass.EXTERNAL),
        ("198.51.100.1", "", 5432, PeerClass.EXTERNAL),
        ("10.0.0.1", "", 1, PeerClass.INTERNAL),
        ("127.0.0.1", "", 1, PeerClass.LOCALHOST),
        ("", "", 0, PeerClass.UNKNOWN),
    ],
)
def test_the_first_rule_that_matches_decides(address: str, host: str, port: int, expected: PeerClass) -> None:
    """By network, by hostname and port, else as without a file."""
    assert network_text.parse(TEXT).class_of(address, host, port) is expected


@given(st.ip_addresses().map(str), st.integers(0, 65535))
def test_without_rules_everything_is_by_default(address: str, port: int) -> None:
    """An empty file changes nothing."""
    assert NetworkFile().class_of(address, "", port) is peer_class(address)


@given(st.lists(NETWORKS, max_size=5), st.ip_addresses(v=4))
def test_a_rule_holds_exactly_its_networks(
    networks: list[ipaddress.IPv4Network], address: ipaddress.IPv4Address
) -> None:
    """Against the library's own idea of containment."""
    rule = PeerRule(PeerClass.SELF_HOSTED, tuple(networks), ports=((1, 2),))
    expected = not networks or any(address in each for each in networks)
    assert rule.matches(as_network(str(address)), "", 1) == expected


def test_services_are_called_by_command_line_or_group_and_port() -> None:
    """All that a rule asks for must fit; the first that fits decides; else nothing is said."""
    rules = network_text.parse(TEXT)
    assert rules.service_of(info(("python3", "/srv/billing.py", "-v"))) == "billing"
    group = ("system.slice", "app-7.service")
    assert rules.service_of(info(cgroup=group), frozenset({8080})) == "legacy"
    assert rules.service_of(info(cgroup=group), frozenset({8081})) == ""
    assert rules.wants_ports
    rules = network_text.parse('[[service]]\nname = "n"\ncommand = "*[job]*"')
    assert [rules.service_of(info((f"x{args}y",))) for args in ("[job]", "j")] == ["n", ""]


def test_names_of_addresses_come_before_what_resolvers_say() -> None:
    """And are normalised like any other."""
    table = HostNames(lambda: 0.0)
    table.configure(network_text.parse(TEXT).names)
    found = table.of(1, 1, 1, "203.0.113.7", Name("x", NameSource.DNS))
    assert found == Name("vault.corp.example", NameSource.CONFIGURED)


def test_a_flow_has_the_class_of_its_hostname() -> None:
    """A public address under a company's own name is internal."""
    known = Known(resolve)
    known.name_by(lambda _process, _there: Name("db.corp.example", NameSource.DNS))
    known.classify_by(network_text.parse(TEXT).class_of)
    key = flow_key(peer="198.51.100.1", port=5432)
    assert known.there(known.processes.of(key[:10]), key).peer_class is PeerClass.INTERNAL


FOLDS = """
[[fold]]
networks = ["203.0.113.0/24", "2001:db8::/32"]

[[fold]]
networks = ["203.0.0.0/16"]
ports = [443, "8000-8100"]

[[fold]]
hosts = ["*.S3.example", "db-??.example"]

[names]
"203.0.113.7" = "vault.corp.example"
"""


@pytest.mark.parametrize(
    ("address", "host", "port", "expected"),
    [
        ("203.0.113.9", "", 22, "203.0.113.0/24"),
        ("::ffff:203.0.113.9", "", 22, "203.0.113.0/24"),
        ("2001:db8:1::9", "", 443, "2001:db8::/32"),
        ("203.0.112.9", "", 443, "203.0.0.0/16"),
        ("203.0.112.9", "", 8100, "203.0.0.0/16"),
        ("203.0.112.9", "", 22, ""),
        ("198.51.100.1", "", 443, ""),
        ("203.0.113.9", "api.example", 443, ""),  # a hostname is worth more than a network
        ("203.0.113.9", "a.b.s3.example", 443, "*.s3.example"),
        ("198.51.100.1", "db-07.example", 5432, "db-??.example"),
        ("198.51.100.1", "db-7.example", 5432, ""),
        ("", "", 0, ""),
    ],
)
def test_a_destination_is_folded_by_the_first_rule_that_fits(
    address: str, host: str, port: int, expected: str
) -> None:
    """Hostnames by patterns only, addresses without one by networks; ports narrow both."""
    assert network_text.parse(FOLDS).fold_of(address, host, port) == expected
    assert NetworkFile().fold_of(address, host, port) == ""


def test_the_loopback_is_never_folded() -> None:
    """Its addresses are another place on each host."""
    rules = network_text.parse('[[fold]]\nnetworks = ["0.0.0.0/0", "::/0"]')
    assert rules.fold_of("127.0.0.53", "", 53) == rules.fold_of("::1", "", 53) == ""
    assert rules.fold_of("10.0.0.1", "", 53) == "0.0.0.0/0"


def test_folds_that_are_odd_are_warned_of() -> None:
    """What an earlier one leaves nothing for, the loopback, and a class that only some of it has."""
    text = """
[[fold]]
networks = ["10.0.0.0/8", "10.1.0.0/16", "127.0.0.0/8"]
[[fold]]
networks = ["203.0.112.0/23"]
hosts = ["*.example"]
[[fold]]
hosts = ["*.db.example"]
ports = [5432]
[[class]]
class = "self-hosted"
networks = ["203.0.113.0/24", "10.0.0.0/8"]
"""
    assert network_text.parse(text).warnings() == [
        (2, "10.1.0.0/16: nothing is folded to it: line 2 comes first"),
        (2, "127.0.0.0/8: addresses of the loopback are not folded"),
        (
            4,
            "203.0.112.0/23: line 10 has its own class for 203.0.113.0/24; the node's class is that of who "
            "is seen first",
        ),
        (7, "*.db.example: nothing is folded to it: line 4 comes first"),
    ]


def test_check_says_which_fold_is_hit(tmp_path: Path) -> None:
    """With the network or pattern, and its line; a name of the file keeps an address from its network."""
    file = tmp_path / "network.toml"
    file.write_text(FOLDS)
    asked = ["203.0.113.9", "203.0.113.7", "203.0.1.1", "203.0.1.1:443", "x.s3.example", "127.0.0.1"]
    run = CliRunner().invoke(network, ["check", str(file), *asked])
    assert run.exit_code == 0
    assert run.output.splitlines() == [
        "203.0.113.9: external by default, since no rule matches, folded to 203.0.113.0/24 by line 2",
        "203.0.113.7: external by default, since no rule matches, named vault.corp.example",
        "203.0.1.1: external by default, since no rule matches",
        "203.0.1.1:443: external by default, since no rule matches, folded to 203.0.0.0/16 by line 5",
        "x.s3.example: no rule matches the name; its address decides, folded to *.s3.example by line 9",
        "127.0.0.1: localhost by default, since no rule matches",
    ]
    assert CliRunner().invoke(network, ["check", str(file)]).output.endswith("0 long polls, 5 folds\n")


INTERNAL = '[[class]]\nclass = "internal"\n'


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("\nfoo = 1", "2:1", "unknown table 'foo'"),
        ("class = 1", "1:1", "[[class]]"),
        ('[[class]]\nclass = "mine"\nnetworks = ["10.0.0.0/8"]', "2:1", "must be one of localhost"),
        (INTERNAL, "2:1", "needs networks, hosts or ports"),
        (INTERNAL + "network = []", "3:1", "unknown key 'network'"),
        (INTERNAL + '  networks = ["10.0.0.1/8"]', "3:3", "host bits set"),
        (INTERNAL + "networks = [10]", "3:1", "is no network"),
        (INTERNAL + 'hosts = ["a b"]', "3:1", "is no hostname"),
        (INTERNAL + "ports = [0]", "3:1", "is no port"),
        (INTERNAL + 'ports = ["9-8"]', "3:1", "is no port"),
        (INTERNAL + "ports = [true]", "3:1", "is no port"),
        (INTERNAL + "ports = 1", "3:1", "must be a list"),
        (INTERNAL + "ports = [1]\n" + INTERNAL + "ports = [99999]", "6:1", "is no port"),
        ('[names]\n"10.0.0.0/8" = "a"', "2:2", "is no address"),
        ('[names]\n"10.0.0.1" = "a b"', "2:2", "is no hostname"),
        ('[[service]]\nname = "~other"\ncommand = "x"', "2:1", "must not begin with ~"),
        ('[[service]]\nname = "x"', "2:1", "needs cgroup, command or ports"),
        ('[[service]]\ncommand = "x"', "1:3", "name must be"),
        ("[[class]]\nclass = internal", "2:9", ""),
        ("[[fold]]", "1:3", "fold: needs networks or hosts"),
        ("[[fold]]\nports = [1]", "2:1", "fold: needs networks or hosts"),
        ('[[fold]]\nname = "cdn"', "2:1", "unknown key 'name'"),
        ('[fold]\nnetworks = ["10.0.0.0/8"]', "1:2", "'fold' must be written as [[fold]]"),
        ('[[fold]]\nnetworks = ["10.0.0.0/8"]\n[[fold]]\nnetworks = ["10.0.0.1/8"]', "4:1", "host bits set"),
        ('[[fold]]\nnetworks = ["10.0.0.1/32"]', "2:1", "one address: nothing to fold"),
        ('[[fold]]\nnetworks = ["::1"]', "2:1", "one address: nothing to fold"),
        ('[[fold]]\n  hosts = ["a.example"]', "2:3", "one hostname: nothing to fold; use * or ?"),
        ('[[fold]]\nhosts = ["*.a/b"]', "2:1", "is no hostname"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, place: str, said: str) -> None:
    """Line and column, what is wrong, what would be right."""
    with pytest.raises(ConfigError) as caught:
        network_text.parse(text)
    assert str(caught.value).startswith(f"{place}: ")
    assert said in str(caught.value)


@given(st.text(max_size=200) | st.integers(0, len(TEXT)).map(lambda at: TEXT[:at] + "]" + TEXT[at:]))
def test_any_text_is_rules_or_one_line(text: str) -> None:
    """Never anything but a ConfigError."""
    said = ""
    try:
        network_text.parse(text)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said


def test_what_nothing_reaches_is_warned_of() -> None:
    """A rule after one that means all it means, and a network that an earlier rule has taken."""
    text = (
        TEXT
        + """
[[class]]
class = "external"
networks = ["203.0.113.128/25"]
[[class]]
class = "external"
networks = ["203.0.113.0/25", "192.0.2.0/24"]
[[class]]
class = "external"
hosts = ["*.db.corp.example"]
ports = [8001]
[[class]]
class = "external"
hosts = ["*.example"]
"""
    )
    assert [said for _line, said in network_text.parse(text).warnings()] == [
        "nothing reaches this rule: line 2 comes first",
        "203.0.113.0/25: line 2 comes first",
        "nothing reaches this rule: line 6 comes first",
    ]


def test_check_says_which_rule_decides(tmp_path: Path) -> None:
    """One line a destination; exit code 0."""
    file = tmp_path / "network.toml"
    file.write_text(TEXT)
    asked = ["203.0.113.7", "db.corp.example:5432", "[2001:db8::1]:443", "x.example", "10.0.0.1"]
    run = CliRunner().invoke(network, ["check", str(file), *asked])
    assert run.exit_code == 0
    assert run.output.splitlines() == [
        "203.0.113.7: self-hosted by line 2, named vault.corp.example",
        "db.corp.example:5432: internal by line 6",
        "[2001:db8::1]:443: self-hosted by line 2",
        "x.example: no rule matches the name; its address decides",
        "10.0.0.1: internal by default, since no rule matches",
    ]


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [("events.example", 443, True), ("events.example", 80, False), ("", 443, False)],
)
def test_destinations_that_are_silent_by_design(host: str, port: int, expected: bool) -> None:
    """A [[long_poll]] matches as a class does; without any there are none."""
    assert network_text.parse(TEXT).is_long_poll("10.0.0.9", host, port) is expected
    assert not NetworkFile().is_long_poll("10.0.0.9", host, port)


def test_a_long_poll_needs_something_to_match() -> None:
    """Said with its line; an unknown key, too."""
    with pytest.raises(ConfigError, match=r"1:3: long_poll: needs networks, hosts or ports"):
        network_text.parse("[[long_poll]]\n")
    with pytest.raises(ConfigError, match=r"unknown key 'class'"):
        network_text.parse('[[long_poll]]\nclass = "internal"\n')
