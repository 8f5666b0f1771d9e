# SPDX-License-Identifier: Apache-2.0
"""`kernob network check`: whether a network file is right, and what it says of a destination."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kernob.commands.base import EXIT_CODES

if TYPE_CHECKING:
    from kernob.state.network import NetworkFile

_DESTINATION = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\s]+))(?::(?P<port>\d{1,5}))?")


@click.group(short_help="The network file: whether it is right, what it says.")
def network() -> None:
    """Look at the network file: classes, folds, names of addresses and of services (docs/network.md)."""


@network.command(epilog=EXIT_CODES, short_help="Check a network file.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("destinations", metavar="[DESTINATION]...", nargs=-1)
def check(file: Path, destinations: tuple[str, ...]) -> int:
    """Read FILE and say what is wrong with it, what is odd, and which rule a DESTINATION hits.

    A DESTINATION is an address or a hostname, with :PORT or without.

    \b
    Examples:
      kernob network check /etc/kernob/network.toml
      kernob network check network.toml 203.0.113.7 db.corp.example:5432 [2001:db8::1]:443
    """
    from kernob.state import network_text

    rules = network_text.load(file)
    for line, warning in rules.warnings():
        click.echo(f"{file}:{line}: warning: {warning}", err=True)
    if not destinations:
        counts = f"{len(rules.classes)} class rules, {len(rules.names)} names"
        click.echo(
            f"{file}: {counts}, {len(rules.services)} service rules, {len(rules.long_polls)} long polls, "
            f"{len(rules.folds)} folds"
        )
    for each in destinations:
        click.echo(f"{each}: {_verdict(rules, each)}")
    return 0


def _verdict(rules: NetworkFile, text: str) -> str:
    """Class, rule and name of one destination. Raises click.BadParameter for what is none."""
    from kernob.state.hostname_text import normalise
    from kernob.state.network import as_network

    if as_network(text) is not None:
        address, port = text, 0
    else:
        found = _DESTINATION.fullmatch(text)
        if not found or int(found["port"] or 0) > 65535:
            raise click.BadParameter(f"{text!r} is neither an address nor a hostname (with :PORT or without)")
        address, port = found["six"] or found["host"], int(found["port"] or 0)
    own = as_network(address)
    host = "" if own is not None else normalise(address.encode())
    if own is None and not host:
        raise click.BadParameter(f"{address!r} is neither an address nor a hostname")
    name = rules.names.get(str(own.network_address)) if own is not None else None
    host = name.host if name else host
    rule = rules.rule_of(address, host, port)
    if rule:
        told = f"{rule.peer_class.value} by line {rule.line}"
    elif own is None:
        told = "no rule matches the name; its address decides"
    else:
        told = f"{rules.class_of(address, host, port).value} by default, since no rule matches"
    told += f", named {name.host}" if name else ""
    fold = rules.fold_rule(address, host, port)
    told += f", folded to {rules.fold_of(address, host, port)} by line {fold.line}" if fold else ""
    return told + (", silent by design" if rules.is_long_poll(address, host, port) else "")
