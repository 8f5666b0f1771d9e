# SPDX-License-Identifier: Apache-2.0
"""Reads the network file: TOML in, rules out; each mistake with its line and column.

Called once at start, and by `kernob network check`. docs/network.md says what may stand there.
"""

from __future__ import annotations

import dataclasses
import importlib
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernob.errors import ConfigError
from kernob.model import Name, NameSource, PeerClass
from kernob.state.hostname_text import normalise
from kernob.state.network import Network, NetworkFile, PeerRule, Ports, ServiceRule
from kernob.state.text import sanitize

MAX_BYTES = 1 << 20
_CLASSES = tuple(each.value for each in PeerClass if each is not PeerClass.UNKNOWN)
_PATTERN = re.compile(r"[a-z0-9_.*?-]{1,253}\Z")
_KEYS = {
    "class": ("class", "networks", "hosts", "ports"),
    "service": ("name", "cgroup", "command", "ports"),
    "long_poll": ("networks", "hosts", "ports"),
    "fold": ("networks", "hosts", "ports"),
}


def load(path: Path) -> NetworkFile:
    """Reads a file. Raises ConfigError, one line: file, line, column, what is wrong, what would be right."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"network file {path}: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"network file {path}: must be at most {MAX_BYTES} bytes")
    try:
        return parse(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"network file {path}: not UTF-8 at byte {error.start}") from error
    except ConfigError as error:
        raise ConfigError(f"network file {path}:{error}") from error


def parse(text: str) -> NetworkFile:
    """Reads the text of a file. Raises ConfigError, its message beginning with "LINE:COLUMN: "."""
    document = _Document(text)
    known = ("class", "names", "service", "long_poll", "fold")
    for key in document.values:
        if key not in known:
            raise document.error(f"unknown table {key!r}: must be one of {', '.join(known)}", key)
    return NetworkFile(
        tuple(_peer_rule(each) for each in document.tables("class")),
        _names(document),
        tuple(_service_rule(each) for each in document.tables("service")),
        tuple(_where(each, PeerClass.UNKNOWN, "long_poll") for each in document.tables("long_poll")),
        tuple(fold for each in document.tables("fold") for fold in _folds(each)),
    )


class _Document:
    """A TOML text, its values, and where they stand."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        try:
            toml = importlib.import_module("tomllib")  # Python 3.11
        except ImportError:
            toml = importlib.import_module("dynaconf.vendor.tomllib")
        try:
            self.values: dict[str, Any] = toml.loads(text)
        except (ValueError, RecursionError) as error:
            message, _, place = str(error).partition(" (at ")
            found = re.match(r"line (\d+), column (\d+)", place)
            line, column = found.groups() if found else (str(max(1, len(self.lines))), "1")
            raise ConfigError(f"{line}:{column}: {message or 'nested too deeply'}") from error

    def tables(self, name: str) -> Iterator[_Table]:
        """Each [[name]] of the file. Raises ConfigError where it is something else."""
        found = self.values.get(name, [])
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self.error(f"{name!r} must be written as [[{name}]]", name)
        headers = [i for i, line in enumerate(self.lines) if re.match(rf"\s*\[\[\s*{name}\s*\]\]", line)]
        for i, values in enumerate(found):
            yield _Table(self, name, values, headers[i] if i < len(headers) else 0)

    def error(self, message: str, key: str, after: int = 0) -> ConfigError:
        """An error at the first line from `after` on that has the key."""
        pattern = re.compile(rf"[\s\[\"'{{,]*({re.escape(key)})\b")
        for number, line in enumerate(self.lines[after:], after + 1):
            found = pattern.match(line)
            if found:
                return ConfigError(f"{number}:{found.start(1) + 1}: {message}")
        return ConfigError(f"{after + 1}:1: {message}")


class _Table:
    """One table of the file and where it begins (line, from 0)."""

    def __init__(self, document: _Document, name: str, values: dict[str, Any], begin: int) -> None:
        self._document = document
        self.name = name
        self.values = values
        self.line = begin + 1
        for key in values:
            if key not in _KEYS[name]:
                raise self.error(f"unknown key {key!r}: must be one of {', '.join(_KEYS[name])}", key)

    def error(self, message: str, key: str) -> ConfigError:
        """An error at the line of a key of this table."""
        after = self.line if key in self.values else self.line - 1  # the header may have the same word
        return self._document.error(f"{self.name}: {message}", key, after)

    def text(self, key: str, need: bool = False) -> str:
        """A string, "" where there is none."""
        value = self.values.get(key, "")
        if not isinstance(value, str) or (need and not value):
            raise self.error(f"{key} must be a string that is not empty", key if value else self.name)
        return value

    def each(self, key: str) -> list[Any]:
        """Entries of a list."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self.error(f"{key} must be a list", key)
        return value


def _peer_rule(table: _Table) -> PeerRule:
    name = table.text("class", need=True)
    if name not in _CLASSES:
        raise table.error(f"class must be one of {', '.join(_CLASSES)}, not {name!r}", "class")
    return _where(table, PeerClass(name), "class")


def _where(table: _Table, peer_class: PeerClass, key: str) -> PeerRule:
    """`key`: the word that a rule without any list is told to stand at."""
    networks = tuple(_network(table, each) for each in table.each("networks"))
    hosts = tuple(_host(table, each) for each in table.each("hosts"))
    ports = _ports(table)
    if not (networks or hosts or ports):
        raise table.error("needs networks, hosts or ports", key)
    return PeerRule(peer_class, networks, hosts, ports, table.line)


def _folds(table: _Table) -> Iterator[PeerRule]:
    """One rule for each network and each pattern: each is a node of its own."""
    if not (table.each("networks") or table.each("hosts")):
        raise table.error("needs networks or hosts", "ports" if table.values else "fold")
    listed = _where(table, PeerClass.UNKNOWN, "fold")
    for network in listed.networks:
        if network.num_addresses == 1:
            raise table.error(f"networks: {str(network)!r} is one address: nothing to fold", "networks")
        yield dataclasses.replace(listed, networks=(network,), hosts=())
    for host in listed.hosts:
        if not set("*?") & set(host):
            raise table.error(f"hosts: {host!r} is one hostname: nothing to fold; use * or ?", "hosts")
        yield dataclasses.replace(listed, networks=(), hosts=(host,))


def _network(table: _Table, value: object) -> Network:
    try:
        if not isinstance(value, str):
            raise TypeError("not a string")  # noqa: TRY301
        return ipaddress.ip_network(value)
    except (ValueError, TypeError) as error:
        raise table.error(
            f"networks: {value!r} is no network like 10.0.0.0/8: {error}", "networks"
        ) from error


def _host(table: _Table, value: object) -> str:
    if not isinstance(value, str) or not _PATTERN.match(value.lower()):
        raise table.error(f"hosts: {value!r} is no hostname; * and ? stand for any characters", "hosts")
    return value.lower()


def _ports(table: _Table) -> tuple[Ports, ...]:
    found = []
    for value in table.each("ports"):
        match = re.match(r"(\d{1,5})(?:-(\d{1,5}))?\Z", str(value), re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if isinstance(value, bool) or not 1 <= first <= last <= 65535:
            raise table.error(f'ports: {value!r} is no port, nor a range like "8000-8100"', "ports")
        found.append((first, last))
    return tuple(found)


def _service_rule(table: _Table) -> ServiceRule:
    name = sanitize(table.text("name", need=True).encode())
    if name.startswith("~"):
        raise table.error("name must not begin with ~", "name")
    rule = ServiceRule(name, table.text("cgroup"), table.text("command"), _ports(table), table.line)
    if not (rule.cgroup or rule.command or rule.ports):
        raise table.error("needs cgroup, command or ports", "name")
    return rule


def _names(document: _Document) -> dict[str, Name]:
    values = document.values.get("names", {})
    if not isinstance(values, dict):
        raise document.error("'names' must be a table: [names]", "names")
    found = {}
    for address, value in values.items():
        try:
            parsed = str(ipaddress.ip_address(address))
        except ValueError as error:
            raise document.error(f"names: {address!r} is no address", address) from error
        host = normalise(value.encode()) if isinstance(value, str) else ""
        if not host:
            raise document.error(f"names: {value!r} is no hostname", address)
        found[parsed] = Name(host, NameSource.CONFIGURED)
    return found
