# SPDX-License-Identifier: Apache-2.0
"""Command lines without secrets: what looks like a password, token or key is replaced before anything leaves.

In: arguments. Out: one line to show. Called by `state.life_events`. What names a secret are patterns for the
names of options and variables; what is masked is the value behind such a name, in any of its usual forms.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import shlex
from collections.abc import Sequence

MASK = "***"
LINE_CHARACTERS = 256

DEFAULT_NAMES = (
    "*passw*",
    "*passwd*",
    "pass",
    "*-pass",
    "*_pass",
    "*secret*",
    "*token*",
    "*api*key*",
    "*access*key*",
    "*private*key*",
    "*credential*",
    "*auth",
    "authorization",
    "*bearer*",
    "pwd",
    "*dsn",
)
"""Names whose values are secrets, in lower case."""

_ASSIGNED = re.compile(r"(?P<name>[\w.-]+)(?P<sign>=|: ?)(?P<value>.+)\Z", re.DOTALL)
_IN_URL = re.compile(r"(?P<scheme>[\w.+-]+://)[^\s/@]*@")
_HEADER = re.compile(r"(?i)((?:proxy-)?authorization|x-[\w-]*(?:key|token)|cookie)(\s*:\s*).*", re.DOTALL)
_SQL = re.compile(r"(?i)(\b(?:identified by|password)\s+)('[^']*'|\"[^\"]*\")")
_PAIR = re.compile(r"([\w.-]+)=([^\s&;,'\"]+)")
_GLUED = {"mysql": "-p", "mysqldump": "-p", "mysqladmin": "-p", "mariadb": "-p", "sshpass": "-p"}
_USER = {"curl": ("-u", "--user", "--proxy-user"), "wget": ()}


class Masker:
    """Makes command lines fit to be seen; `names` are patterns besides DEFAULT_NAMES."""

    def __init__(self, names: Sequence[str] = (), *, masked: bool = True) -> None:
        """`masked` False leaves them as they are."""
        patterns = (*DEFAULT_NAMES, *(name.lower() for name in names))
        self._secret = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
        self._masked = masked

    def line(self, args: Sequence[str]) -> str:
        """The arguments as a shell would be given them, at most LINE_CHARACTERS long.

        >>> Masker().line(("app", "--db-password", "hunter2", "--token=abc", "postgres://u:p@db/x"))
        'app --db-password *** --token=*** postgres://***@db/x'
        """
        shown = self.args(args) if self._masked else list(args)
        text = " ".join(
            arg if arg == MASK or (MASK in arg and " " not in arg) else shlex.quote(arg) for arg in shown
        )
        return text if len(text) <= LINE_CHARACTERS else text[: LINE_CHARACTERS - 1] + "…"

    def args(self, args: Sequence[str]) -> list[str]:
        """Each argument with its secrets masked."""
        found: list[str] = []
        program = args[0].rpartition("/")[2] if args else ""
        secret_next = False
        for arg in args:
            if secret_next and not (arg.startswith("--") and len(arg) > 2):
                found.append(MASK)
                secret_next = False
                continue
            secret_next = False
            glued = _GLUED.get(program)
            if glued and arg.startswith(glued) and len(arg) > len(glued) and not arg.startswith("--"):
                found.append(glued + MASK)
                continue
            if arg in _USER.get(program, ()) or (program == "sshpass" and arg == "-p"):
                secret_next = True
            elif arg.startswith("-") and "=" not in arg and " " not in arg:
                secret_next = self._names_secret(arg.lstrip("-"))
            found.append(self._inside(arg))
        return found

    def _inside(self, arg: str) -> str:
        """One argument, which may be a whole script, with the values of secret names masked."""
        arg = _IN_URL.sub(rf"\g<scheme>{MASK}@", arg)
        arg = _HEADER.sub(rf"\1\2{MASK}", arg)
        arg = _SQL.sub(rf"\1{MASK}", arg)
        assigned = _ASSIGNED.match(arg.lstrip("-"))
        if assigned and self._names_secret(assigned["name"]):
            dashes = arg[: len(arg) - len(arg.lstrip("-"))]
            return f"{dashes}{assigned['name']}{assigned['sign']}{MASK}"
        return _PAIR.sub(lambda m: f"{m[1]}={MASK}" if self._names_secret(m[1]) else m[0], arg)

    @functools.lru_cache(4096)  # noqa: B019  one Masker lives as long as the agent
    def _names_secret(self, name: str) -> bool:
        return bool(self._secret.match(name.lower()))
