# SPDX-License-Identifier: Apache-2.0
"""Servers as people run them, from their distribution's packages, in a network namespace of the test's own.

In: a directory. Out: servers that listen on their usual ports there. Used by test_tcp_servers.py. Nothing of
the machine's own configuration, data or services is touched; what was started ends with the namespace.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import wait_until

HTTP, HTTP_SHORT, HTTPS, APPLICATION, PROXY = 80, 81, 443, 82, 8080
REDIS, POSTGRES, AMQP = 6379, 5432, 5672
PACKAGES = {
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "redis-benchmark": "redis-tools",
    "haproxy": "haproxy",
    "/usr/lib/rabbitmq/bin/rabbitmq-server": "rabbitmq-server",
    "postgres": "postgresql",
    "pgbench": "postgresql",
    "psql": "postgresql-client",
    "curl": "curl",
    "openssl": "openssl",
    "ip": "iproute2",
}
"""The programs, and which Debian package has them."""

CLIENT = Path(__file__).parent / "workloads" / "clients.py"
CLIENT_MODULES = {
    "redis": "python3-redis",
    "psycopg2": "python3-psycopg2",
    "pika": "python3-pika",
    "aiohttp": "python3-aiohttp",
}
"""What clients.py imports; it is run by the distribution's Python, for which the packages are."""
SYSTEM_PYTHON = "/usr/bin/python3"
_STOP_LIMIT_S = 20.0


def missing() -> list[str]:
    """Packages that would have to be installed."""
    found = {package for program, package in PACKAGES.items() if not program_path(program)}
    for module, package in CLIENT_MODULES.items():
        done = subprocess.run([SYSTEM_PYTHON, "-c", f"import {module}"], capture_output=True, check=False)
        if done.returncode:
            found.add(package)
    return sorted(found)


def program_path(name: str) -> str | None:
    """Where a program is; PostgreSQL's are in a directory of their version."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    places = [os.environ.get("PATH", ""), "/usr/sbin", *map(str, versions)]
    return shutil.which(name, path=os.pathsep.join(places))


class Stage:
    """A network namespace; `run` and `start` work inside. Ends every process that is in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"kernob-servers-{os.getpid()}"
        self._started: list[subprocess.Popen[bytes]] = []
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")

    @property
    def inode(self) -> int:
        """The namespace's number."""
        return Path(f"/run/netns/{self.name}").stat().st_ino

    def command(self, *words: object, user: str = "") -> list[str]:
        """How a command is run inside, as another user if named."""
        first = program_path(str(words[0]))
        if not first:
            pytest.skip(f"missing feature: package {PACKAGES[str(words[0])]}")
        become = []
        if user:
            entry = pwd.getpwnam(user)
            become = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        return ["ip", "netns", "exec", self.name, *become, first, *map(str, words[1:])]

    def run(self, *words: object, user: str = "", code: int = 0, **variables: str) -> str:
        """What a command printed; its exit code must be as expected."""
        done = subprocess.run(
            self.command(*words, user=user),
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **variables},
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *words: object, user: str = "", **variables: str) -> subprocess.Popen[bytes]:
        """A command that goes on; what it says goes to a file named like it."""
        log = self.directory / f"{Path(str(words[0])).name}.out"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                self.command(*words, user=user),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **variables},
            )
        self._started.append(process)
        return process

    def client(self, what: str, *arguments: object) -> list[str]:
        """The command of an ordinary client: see workloads/clients.py."""
        return ["ip", "netns", "exec", self.name, SYSTEM_PYTHON, str(CLIENT), what, *map(str, arguments)]

    def stop(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
        """Ends what was started and waits."""
        process.send_signal(number)
        process.wait(_STOP_LIMIT_S)
        self._started.remove(process)

    def wait_for(self, port: int) -> None:
        """Until somebody listens there. Looks without connecting, which would be a connection more."""
        line = f":{port:04X} "

        def listens() -> bool:
            tables = self.run_in(lambda: Path("/proc/thread-self/net/tcp").read_text())
            return any(line in row and row.split()[3] == "0A" for row in tables.splitlines())

        wait_until(listens, f"port {port}", limit_s=60)

    def run_in(self, function: Callable[[], str]) -> str:
        """What a function returns, called by a process inside."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            with open(f"/run/netns/{self.name}") as namespace:  # noqa: PTH123
                _setns(namespace.fileno())
            os.close(reader)
            with os.fdopen(writer, "w") as stream:
                stream.write(function())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            said = stream.read()
        os.waitpid(pid, 0)
        return said

    def pids(self) -> list[int]:
        """Every process inside."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def close(self) -> None:
        """Ends what is inside, whoever started it, and takes the namespace away."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 10
            while self.pids() and time.monotonic() < deadline:
                for process in self._started:
                    process.poll()
                time.sleep(0.05)
        for process in self._started:
            process.wait(_STOP_LIMIT_S)
        _ip("netns", "delete", self.name)


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """A namespace with an empty directory that servers under other users may enter."""
    if not shutil.which("ip"):
        pytest.skip("missing feature: package iproute2")
    with tempfile.TemporaryDirectory(prefix="kernob-servers-") as directory:
        Path(directory).chmod(0o755)
        made = Stage(Path(directory))
        try:
            yield made
        finally:
            made.close()


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _setns(descriptor: int) -> None:
    if sys.version_info >= (3, 12):
        os.setns(descriptor)
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


NGINX = """
user root; daemon off; worker_processes 2; pid {dir}/nginx.pid; error_log {dir}/nginx.err info;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  keepalive_requests 100000;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream app {{ server 127.0.0.1:{app}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl http2;
    ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;
    root {dir}/www;
    location /app/ {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; }}
  }}
  server {{ listen 127.0.0.1:{short}; root {dir}/www; keepalive_timeout 2s; }}
}}
"""


def start_nginx(where: Stage) -> subprocess.Popen[bytes]:
    """Files of 5 B, 1 KiB and 2 MB; TLS; a proxy to an application; a server that ends idle connections."""
    home = where.directory
    (home / "www").mkdir(exist_ok=True)
    for name, size in (("small", 5), ("page", 1024), ("large", 2_000_000)):
        (home / "www" / name).write_bytes(b"x" * size)
    if not (home / "cert.pem").exists():
        where.run(
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-keyout", home / "key.pem", "-out", home / "cert.pem"),
        )
    text = NGINX.format(dir=home, http=HTTP, https=HTTPS, short=HTTP_SHORT, app=APPLICATION)
    (home / "nginx.conf").write_text(text)
    process = where.start("nginx", "-c", home / "nginx.conf", "-e", home / "nginx.err")
    for port in (HTTP, HTTPS, HTTP_SHORT):
        where.wait_for(port)
    return process


HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 2s
  timeout server 5s
frontend f
  bind 127.0.0.1:{proxy}
  default_backend b
backend b
  option httpchk HEAD /small HTTP/1.0
  server nginx 127.0.0.1:{http} check inter 500ms
"""


def start_haproxy(where: Stage) -> subprocess.Popen[bytes]:
    """In front of nginx, with health checks of twice a second, idle clients closed after 2 s."""
    path = where.directory / "haproxy.cfg"
    path.write_text(HAPROXY.format(proxy=PROXY, http=HTTP))
    process = where.start("haproxy", "-db", "-f", path)
    where.wait_for(PROXY)
    return process


def start_redis(where: Stage) -> subprocess.Popen[bytes]:
    """Nothing on disk; connections that are idle for 2 s are closed (published ones are not)."""
    options = ("--port", REDIS, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--timeout", "2")
    process = where.start("redis-server", *options, "--dir", where.directory, "--logfile", "redis.log")
    where.wait_for(REDIS)
    return process


def start_postgres(where: Stage) -> subprocess.Popen[bytes]:
    """A cluster of its own, made at the first start; sessions that idle for 2 s are ended."""
    data = where.directory / "pg"
    if not data.exists():
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
        where.run("initdb", "-D", data, "-A", "trust", "-N", "--no-locale", user="postgres")
    process = where.start(
        *("postgres", "-D", data, "-h", "127.0.0.1", "-p", POSTGRES, "-k", ""),
        *("-c", "fsync=off", "-c", "idle_session_timeout=2s", "-c", "log_line_prefix=%m "),
        user="postgres",
    )
    where.wait_for(POSTGRES)
    return process


def start_rabbitmq(where: Stage, heartbeat_s: int = 2) -> subprocess.Popen[bytes]:
    """A broker that closes connections whose client has been silent for two heartbeats."""
    home = where.directory / "rabbitmq"
    home.mkdir(exist_ok=True)
    config = home / "rabbitmq.conf"
    config.write_text(
        f"listeners.tcp.1 = 127.0.0.1:{AMQP}\nheartbeat = {heartbeat_s}\nlog.console = false\n"
        f"log.file = {home}/broker.log\nlog.file.level = info\n"
    )
    process = where.start(
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
        HOME=str(home),
        RABBITMQ_NODENAME="kernob@localhost",
        RABBITMQ_CONFIG_FILE=str(config),
        RABBITMQ_MNESIA_BASE=str(home / "mnesia"),
        RABBITMQ_LOG_BASE=str(home),
        RABBITMQ_ENABLED_PLUGINS_FILE=str(home / "plugins"),
        RABBITMQ_PID_FILE=str(home / "pid"),
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 1:1 +sbwt none",
    )
    where.wait_for(AMQP)
    return process


def start_application(where: Stage) -> subprocess.Popen[bytes]:
    """What nginx is in front of: see workloads/clients.py."""
    process = where.start(SYSTEM_PYTHON, CLIENT, "application", APPLICATION, 0)
    where.wait_for(APPLICATION)
    return process


STARTERS: dict[str, Callable[[Stage], subprocess.Popen[bytes]]] = {
    "rabbitmq": start_rabbitmq,
    "nginx": start_nginx,
    "haproxy": start_haproxy,
    "redis": start_redis,
    "postgres": start_postgres,
    "application": start_application,
}


def start_all(where: Stage) -> dict[str, subprocess.Popen[bytes]]:
    """Every server, by its name."""
    return {name: start(where) for name, start in STARTERS.items()}
