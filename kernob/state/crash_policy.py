# SPDX-License-Identifier: Apache-2.0
"""Which failures count as crashes: who failed, under whom.

In: a command line that keeps failing, and its parent. Out: yes or no. Called by `state.crash_loops` through
`features.lifecycle`. What looks alike to a counter is told apart here:

- a container's first process always counts; what is started in a container from outside (a health check)
  never;
- a worker (it runs its parent's own program, forked or not) counts where a signal killed it: its exit code is
  a message to its parent, not a crash;
- under a program that exists to restart others, everything counts;
- under any other parent, a shell first of all, programs whose exit code is an answer do not count (grep,
  test, curl), and the failures must be a good part of what the parent does: a script that runs a hundred
  commands of which some fail is no supervisor.

cron is none of these: each of its jobs has a parent of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kernob.state.endings import ending_of

_SHARE = 5
"""Under an ordinary parent, one of so many of its ended children must be a failure of this kind."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SUPERVISORS = _words(
    "systemd init runsv supervisord supervise s6-supervise perpd monit god circusd PM2 pm2 tini docker-init"
    " dumb-init catatonit foreman honcho overmind forever nodemon watchmedo nomad immortal procd respawn"
    " start_kernel launch eye bluepill"
)
_SHIMS = ("containerd-shim", "conmon", "runc", "crun", "dockerd", "podman")
SHELLS = _words("sh bash dash ash zsh ksh fish")
"""Without a script: what they were given by -c failed, which may matter."""

ANSWERS = (
    _words(
        "[ test grep egrep fgrep zgrep rg ag diff cmp comm pgrep pidof pkill kill killall which command type"
        " false"
        " expr let ls stat cat head tail find readlink realpath dirname basename id getent groups hostname"
        " tty stty"
        " sed awk gawk mawk cut sort uniq tr wc tee xargs env printenv mkdir rmdir rm cp mv"
        " ln touch chmod chown"
        " curl wget nc ncat netcat socat telnet ping ping6 fping host dig nslookup drill openssl"
        " nmap traceroute"
        " pg_isready psql redis-cli mysql mysqladmin mariadb mongo mongosh etcdctl rabbitmqctl"
        " rabbitmq-diagnostics"
        " consul vault nats kafkacat kcat amqp-get sqlite3"
        " systemctl service docker podman kubectl crictl git svn hg ssh scp rsync sudo su flock mountpoint"
        " findmnt"
        " mount umount ip ss netstat lsof fuser iptables nft modprobe lsmod sysctl udevadm blkid lsblk"
        " tput clear"
        " sleep timeout true date echo printf read jq yq xmllint md5sum sha256sum gpg file make ninja gcc cc"
        " g++ c++"
        " clang ld cmake pkg-config conftest configure tar gzip gunzip unzip dpkg dpkg-query apt-get apt rpm"
        " yum dnf"
        " pip npm"
    )
    | SHELLS
)
"""Programs whose exit code answers a question, or that one calls for one thing."""


@dataclass(frozen=True, slots=True)
class Parent:
    """Who started it: the `name` by which services are called, and whether it is process 1."""

    pid: int
    name: str


def can_crash(
    name: str,
    parent: Parent | None,
    codes: Mapping[int, int],
    *,
    forked: bool,
    is_container: bool,
    failures: int,
    siblings: int,
) -> bool:
    """Whether failures of the program `name` can be a crash loop; `parent` None: it is gone.

    `codes`: how often it ended with which code; `failures` of its parent's `siblings` that ended meanwhile.
    """
    if is_container:
        return True
    if parent is None or parent.name.startswith(_SHIMS):
        return False
    if forked or name == parent.name:
        return _killed(codes)
    if parent.pid == 1 or parent.name in SUPERVISORS:
        return True
    if name in ANSWERS and not _killed(codes):
        return False
    return failures * _SHARE >= siblings


def _killed(codes: Mapping[int, int]) -> bool:
    """Whether most ends were by a signal."""
    by_signal = sum(count for code, count in codes.items() if ending_of(code).signal)
    return 2 * by_signal > sum(codes.values())
