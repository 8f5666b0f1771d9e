# SPDX-License-Identifier: Apache-2.0
"""Kinds of setting values: what text or TOML value is accepted, and what it means.

Raw values enter (text from the environment, TOML values, or values of the command line), typed values
leave; every `parse` raises ValueError on anything else, and `expects` says in words what would have been
valid ("must be ..."). Called by `config` only.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from kernob.syscall_table import NEVER_RETURN, expand, numbers

# ASCII digits only: float() would also take "1_0", "nan", "infinity" and other scripts' digits.
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252})")
# RFC 9110 section 5.6.2: what a header name may consist of; its value is kept to what
# both HTTP and gRPC carry.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
# struct sockaddr_un.sun_path holds 108 bytes with its closing zero (unix(7)).
_SOCKET_PATH_BYTES = 107
_PATH_BYTES = 4095


class MisfitError(ValueError):
    """What is wrong with a value where its kind can say more than what it expects in general.

    The message is the rest of the sentence "must be ...".
    """


class Kind(Protocol):
    """What a setting's value may be."""

    @property
    def expects(self) -> str:
        """The rest of the sentence "must be ..."."""

    def parse(self, raw: object) -> Any:
        """Return the value `raw` stands for; ValueError when it stands for none."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing a user can set.

    `variable` is its environment variable, `field` where its value ends up in Settings (dotted), `secret`
    whether its value must never be shown.
    """

    variable: str
    field: str
    kind: Kind
    help: str
    secret: bool = False

    @property
    def toml_key(self) -> str:
        """Its key in the TOML file: KERNOB_A_B is `a_b`, OTEL_A_B is `otel.a_b`."""
        prefix, _, rest = self.variable.partition("_")
        return rest.lower() if prefix == "KERNOB" else f"{prefix.lower()}.{rest.lower()}"

    def accepts(self, raw: object) -> bool:
        """Whether `raw` stands for a value of this setting."""
        try:
            self.kind.parse(raw)
        except ValueError:
            return False
        return True


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError("not a text")
    return raw.strip()


@dataclass(frozen=True, slots=True)
class Number:
    """A decimal or whole number within [low, high], multiplied by `scale` to its field's unit."""

    low: float
    high: float
    noun: str
    whole: bool = False
    scale: float = 1

    @property
    def expects(self) -> str:
        """See Kind."""
        return f"{self.noun} from {self.low:.15g} to {self.high:.15g}"

    def parse(self, raw: object) -> float | int:
        """Return the number in the field's unit; ValueError when it is none, not finite, or out of range."""
        if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
            raise ValueError("not a number")
        if isinstance(raw, str):
            raw = raw.strip()
            if not (_INTEGER if self.whole else _DECIMAL).fullmatch(raw):
                raise ValueError("not a number")
            value: float | int = int(raw) if self.whole else float(raw)
        else:
            value = raw
        if self.whole and not isinstance(value, int):
            raise ValueError("not a whole number")
        if not self.low <= value <= self.high:
            raise ValueError("out of range")
        return value if self.whole else float(value) * self.scale


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false; `lenient` also takes 1, 0, yes, no, on, off."""

    lenient: bool = True

    @property
    def expects(self) -> str:
        """See Kind."""
        return "true or false"

    def parse(self, raw: object) -> bool:
        """Return the truth value."""
        if isinstance(raw, bool):
            return raw
        word = _text(raw).lower()
        if word in (("true", "1", "yes", "on") if self.lenient else ("true",)):
            return True
        if word in (("false", "0", "no", "off") if self.lenient else ("false",)):
            return False
        raise ValueError("neither true nor false")


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few words, in any case."""

    choices: tuple[str, ...]

    @property
    def expects(self) -> str:
        """See Kind."""
        return " or ".join(self.choices) if len(self.choices) < 3 else f"one of {', '.join(self.choices)}"

    def parse(self, raw: object) -> str:
        """Return the word in its own case."""
        word = _text(raw).lower()
        if word not in self.choices:
            raise ValueError("not one of the words")
        return word


@dataclass(frozen=True, slots=True)
class Words:
    """A comma-separated text, or a TOML array, of words that match `pattern`; may be empty."""

    pattern: str
    noun: str

    @property
    def expects(self) -> str:
        """See Kind."""
        return f"a comma-separated list of {self.noun}"

    def parse(self, raw: object) -> tuple[str, ...]:
        """Return the words in the order given, each once."""
        if isinstance(raw, str):
            parts = [part.strip() for part in raw.split(",")] if raw.strip() else []
        elif isinstance(raw, (list, tuple)):
            parts = [_text(part) for part in raw]
        else:
            raise ValueError("not a list")
        if not all(re.fullmatch(self.pattern, part) for part in parts):
            raise ValueError("not one of the words")
        return tuple(dict.fromkeys(parts))


@dataclass(frozen=True, slots=True)
class SyscallNames:
    """A comma-separated text, or a TOML array, of names of system calls; "none" alone stands for none.

    `machine` as uname(2) has it; "": this one. A family's name stands for all of its calls.
    """

    machine: str = ""

    @property
    def expects(self) -> str:
        """See Kind."""
        return "a comma-separated list of system calls, or none"

    def parse(self, raw: object) -> tuple[str, ...]:
        """Return the calls, each once; MisfitError names the first that is unknown, and the nearest."""
        names = Words(r"[a-z0-9_]{1,40}", "system calls").parse(raw)
        if names == ("none",):
            return ()
        if not names:
            raise MisfitError(self.expects)
        found: list[str] = []
        for name in names:
            expanded = expand(name, self.machine)
            if name in NEVER_RETURN:
                raise MisfitError(f"a list of system calls that return; {name} does not")
            if not expanded:
                raise MisfitError(self._no_such(name))
            found += expanded
        return tuple(dict.fromkeys(found))

    def _no_such(self, name: str) -> str:
        known = numbers(self.machine)
        where = self.machine or os.uname().machine
        if not known:
            return f"none: the system calls of {where} are not known"
        near = difflib.get_close_matches(name, [n for n in known if n not in NEVER_RETURN], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{self.expects}; {where} has no call {name}{hint}"


@dataclass(frozen=True, slots=True)
class PathName:
    """An absolute path. `need` is what must already be there: "" (nothing), "directory", "file", "pem"."""

    need: str = ""
    max_bytes: int = _PATH_BYTES

    @property
    def expects(self) -> str:
        """See Kind."""
        return {
            "": f"an absolute path (at most {self.max_bytes} bytes)",
            "directory": "the absolute path of a directory",
            "file": "the absolute path of a readable file",
            "pem": "the absolute path of a readable PEM file",
        }[self.need]

    def parse(self, raw: object) -> Path:
        """Return the path; ValueError when it is relative, too long, or not what is needed."""
        text = str(raw) if isinstance(raw, Path) else _text(raw)
        path = Path(text)
        if not path.is_absolute() or "\0" in text or len(os.fsencode(text)) > self.max_bytes:
            raise ValueError("not an absolute path")
        try:
            if self.need == "directory" and not path.is_dir():
                raise ValueError("no such directory")
            if self.need in ("file", "pem"):
                if path.exists() and not path.is_file():
                    raise ValueError("not a file")
                with path.open("rb") as file:
                    if self.need == "pem" and b"-----BEGIN " not in file.read(1 << 20):
                        raise ValueError("not PEM")
        except OSError as error:
            raise ValueError(str(error.strerror)) from error
        return path


SOCKET_PATH = PathName(max_bytes=_SOCKET_PATH_BYTES)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OTLP endpoint: an http or https URL, or host:port (gRPC only)."""

    @property
    def expects(self) -> str:
        """See Kind."""
        return "http://host:port or https://host:port (or host:port with protocol grpc)"

    def parse(self, raw: object) -> SplitResult:
        """Return its parts; `scheme` is "" for host:port. ValueError when it is malformed."""
        text = _text(raw)
        # urlsplit() would drop tabs and line ends without a word.
        if re.search(r"[\s\x00-\x1f\x7f]", text) or not text.isascii():
            raise ValueError("not a URL")
        parts = urlsplit(text if "://" in text else f"//{text}")
        if parts.scheme not in ("http", "https", "") or parts.fragment or not parts.hostname:
            raise ValueError("not an OTLP endpoint")
        if ":" in parts.hostname:
            IPv6Address(parts.hostname)
        elif not _HOST_NAME.fullmatch(parts.hostname):
            raise ValueError("not a host name")
        if parts.port == 0 or (not parts.scheme and (parts.port is None or parts.path or parts.query)):
            raise ValueError("port missing or out of range")
        return parts


def _pairs(raw: object) -> list[tuple[str, str]]:
    """Split k=v,k=v with percent-encoded parts (W3C Baggage), or take a TOML table as it is."""
    if isinstance(raw, Mapping):
        return [(str(key), _text(value)) for key, value in raw.items()]
    text = _text(raw)
    text.encode()  # what is not valid Unicode could never leave as OTLP
    pairs = []
    for member in text.split(","):
        if not member.strip():
            continue  # trailing commas are common, and Baggage allows empty members
        key, equals, value = member.partition("=")
        if not equals or not key.strip() or _BROKEN_PERCENT.search(member):
            raise ValueError("not key=value")
        pairs.append((unquote(key.strip(), errors="strict"), unquote(value.strip(), errors="strict")))
    return pairs


@dataclass(frozen=True, slots=True)
class Headers:
    """Request headers, OTLP exporter specification: W3C Baggage without properties."""

    @property
    def expects(self) -> str:
        """See Kind."""
        return "name=value,name=value with percent-encoded values"

    def parse(self, raw: object) -> tuple[tuple[str, str], ...]:
        """Return (lower-case name, value) pairs; of a repeated name the last value stays."""
        headers = {}
        for name, value in _pairs(raw):
            if not _TOKEN.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ValueError("not a header")
            headers[name.lower()] = value
        return tuple(headers.items())


@dataclass(frozen=True, slots=True)
class ResourceAttributes:
    """Resource attributes, Resource SDK specification: W3C Baggage, of which any error rejects the whole."""

    @property
    def expects(self) -> str:
        """See Kind."""
        return "key=value,key=value with percent-encoded values"

    def parse(self, raw: object) -> tuple[tuple[str, str], ...]:
        """Return (key, value) pairs; of a repeated key the last value stays."""
        return tuple(dict(_pairs(raw)).items())


@dataclass(frozen=True, slots=True)
class Name:
    """A short text for people: one line, at most 255 characters."""

    @property
    def expects(self) -> str:
        """See Kind."""
        return "one line of at most 255 characters"

    def parse(self, raw: object) -> str:
        """Return the text."""
        text = _text(raw)
        if len(text) > 255 or not text.isprintable():
            raise ValueError("not one line")
        return text


@dataclass(frozen=True, slots=True)
class Numbers:
    """name=number,name=number, or a TOML table: numbers by a few known names, or by any name (`names` empty).

    Names are unified to lower case; what is not named keeps its default, which the reader of the value knows.
    """

    names: tuple[str, ...]
    number: Number
    noun: str

    @property
    def expects(self) -> str:
        """See Kind."""
        which = f", names being {', '.join(self.names)}" if self.names else ""
        return f"{self.noun}=number,... with {self.number.expects}{which}"

    def parse(self, raw: object) -> tuple[tuple[str, float], ...]:
        """Return (name, number) pairs; of a repeated name the last number stays."""
        if isinstance(raw, str):
            parts = [part.partition("=") for part in raw.split(",")] if raw.strip() else []
            pairs: list[tuple[str, object]] = [(name, number) for name, _equals, number in parts]
        elif isinstance(raw, Mapping):
            pairs = list(raw.items())
        elif isinstance(raw, tuple) and all(isinstance(part, tuple) and len(part) == 2 for part in raw):
            pairs = list(raw)
        else:
            raise ValueError("no list")
        found = {_text(name).lower(): self.number.parse(number) for name, number in pairs}
        if self.names and not found.keys() <= set(self.names):
            raise ValueError("an unknown name")
        if not all(len(name) <= 253 and name.isprintable() for name in found):
            raise ValueError("no name")
        return tuple(found.items())
