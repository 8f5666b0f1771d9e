# SPDX-License-Identifier: Apache-2.0
"""A topology of real services in network namespaces and control groups, and the truth about it.

Used by tests/kernel/test_map_truth.py. Each service runs in a control group called like its unit, or with a
container's id, so that it has a name of its own beside whatever else runs on this machine. `outside` is
another machine behind a router that translates addresses both ways: what can be known of it is an address or
a hostname here, and clients there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WORKLOAD = Path(__file__).parent / "workloads" / "service.py"
RESOLVER = WORKLOAD.with_name("dns_server.py")
HTTP, REDIS = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PING\r\n"
POSTGRES = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""SSLRequest of PostgreSQL's protocol: the server answers with one letter."""
AMQP = "AMQP\x00\x00\x09\x01"
"""AMQP 0-9-1's header: the broker answers with connection.start."""

# of this process alone: another run of the same topology must not have the same addresses
_NET = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
HOST, WEB, DB, OUTSIDE = f"{_NET}.1", f"{_NET}.2", f"{_NET}.3", "198.51.100.9"
VIP, PAY = "192.0.2.80", "192.0.2.90"
PAY_NAME = "pay.names.test"
NOWHERE, NOWHERE_ELSE = "203.0.113.9", "203.0.113.10"
BEYOND, VIRTUAL = "203.0.113.0/24", "192.0.2.0/24"
FOLDS = f'[[fold]]\nnetworks = ["{BEYOND}", "{VIRTUAL}"]\n'
"""Networks that are one node each; in them are an address of the host's own and one that has a hostname."""
_HOOKS = (("prerouting", -100), ("output", -100), ("postrouting", 100))


def run(*command: str, text: str = "") -> None:
    """Runs a command with this on its standard input. Raises CalledProcessError."""
    subprocess.run(command, check=True, capture_output=True, text=True, input=text)


def _groups() -> list[Path]:
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, point, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "pids" in options.split(",")):
            found.append(Path(point))
    return found


def program(name: str, *places: str) -> str:
    """Where a program is; skips the test where it is not installed."""
    found = shutil.which(name, path=":".join((os.environ.get("PATH", ""), "/usr/sbin", *places)))
    if found is None:
        pytest.skip(f"missing feature: {name}")
    return found


@dataclass
class Topology:
    """Namespaces, control groups, services by name; and the edges that they make."""

    directory: Path
    mark: str = field(default_factory=lambda: f"kt{os.getpid()}")
    commands: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    containers: tuple[str, ...] = ("web", "redis")

    @property
    def host_root(self) -> Path:
        """Has what Docker keeps of these containers."""
        return self.directory / "root"

    @property
    def settings(self) -> dict[str, Path]:
        """What an agent has to be told for the map to be `truth`."""
        network_file = self.directory / "network.toml"
        network_file.write_text(FOLDS)
        return {"host_root": self.host_root, "network_file": network_file}

    def ns(self, name: str) -> str:
        """A namespace's name on this machine."""
        return f"{self.mark}-{name}"

    def unit(self, name: str) -> str:
        """What Kernob will call a service: a job of cron by its script."""
        return f"{self.mark}-{name}"

    def group(self, name: str) -> str:
        """The control group of a service: its container's, cron's, or its unit's."""
        if name in self.containers:
            return hashlib.sha256(self.unit(name).encode()).hexdigest()
        return "cron.service" if name == JOB else f"{self.unit(name)}.service"

    def keep_containers(self) -> None:
        """Writes what Docker would keep."""
        for name in self.containers:
            directory = self.host_root / "var/lib/docker/containers" / self.group(name)
            directory.mkdir(parents=True)
            content = {"ID": self.group(name), "Name": f"/{self.unit(name)}"}
            (directory / "config.v2.json").write_text(json.dumps(content))

    def start(self, name: str) -> None:
        """Starts a service in its namespace and control group."""
        netns, command = self.commands[name]
        joins = []
        for root in _groups():
            group = root / self.mark / self.group(name)
            group.mkdir(parents=True, exist_ok=True)
            joins.append(f"echo $$ > {group}/cgroup.procs")
        script = " && ".join((*joins, 'exec "$@"'))
        with (self.directory / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                ["sh", "-c", script, "sh", "ip", "netns", "exec", self.ns(netns), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def listens(self, name: str, port: int) -> bool:
        """Whether anybody listens on a port in a service's namespace; nobody is asked by a connection."""
        netns, _command = self.commands[name]
        listeners = ["ip", "netns", "exec", self.ns(netns), "ss", "-Hltn", f"sport = :{port}"]
        return bool(subprocess.run(listeners, check=True, capture_output=True).stdout)

    def stop(self, name: str) -> None:
        """Ends a service with all its processes."""
        process = self.running.pop(name)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        for root in _groups():
            group = root / self.mark / self.group(name)
            for _ in range(500):
                left = (group / "cgroup.procs").read_text().split()
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                if not left:
                    break
                time.sleep(0.01)

    def stop_all(self) -> None:
        """Ends whatever runs."""
        for name in list(self.running):
            self.stop(name)

    def python(self, name: str, netns: str, *more: str, **plan: Any) -> None:
        """Adds a service of ours."""
        script = self.directory / self.unit(name)
        script.symlink_to(WORKLOAD)
        self.commands[name] = netns, [sys.executable, str(script), json.dumps(plan), *more]

    def truth(self) -> set[tuple[str, str, int]]:
        """Every edge there is: source, target (a service of ours, or a node's id), port."""
        return {
            ("client", "haproxy", 8443), ("haproxy", "nginx", 80), ("nginx", "app", 9001),
            ("app", "redis", 6379), ("app", "postgresql", 5432), ("app", f"ip/{BEYOND}", 443),
            ("app", f"dns/{PAY_NAME}", 443), ("clients/external", "payments", 8443),
            ("worker", "rabbitmq", 5672), ("worker", "postgresql", 5432), ("app", "rabbitmq", 5672),
            ("rabbitmq", "rabbitmq", 4369),  # Erlang's port mapper, which it starts
            ("scraper", "app", 9001), ("scraper", "redis", 6379), ("scraper", "nginx", 80),
            (JOB, "app", 9001), ("worker", "web", 8080), ("scraper", "web", 8080), ("self", "self", 7000),
            ("browser", "proxy", 8080), ("proxy", "web", 8000),
            ("remote", f"ip/{VIRTUAL}", 80), ("clients/external", "nginx", 80),
        }  # fmt: skip


def _network(topology: Topology, stack: contextlib.ExitStack) -> None:
    for name in ("host", "web", "db", "router", "outside"):
        run("ip", "netns", "add", topology.ns(name))
        stack.callback(run, "ip", "netns", "delete", topology.ns(name))
        run("ip", "-n", topology.ns(name), "link", "set", "lo", "up")
    host = topology.ns("host")
    run("ip", "-n", host, "link", "add", "br-test", "type", "bridge")
    run("ip", "-n", host, "addr", "add", f"{HOST}/24", "dev", "br-test")
    run("ip", "-n", host, "link", "set", "br-test", "up")
    for name, address in (("web", WEB), ("db", DB)):
        inner = topology.ns(name)
        run("ip", "-n", host, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", inner)
        run("ip", "-n", host, "link", "set", name, "master", "br-test", "up")
        run("ip", "-n", inner, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", inner, "link", "set", "eth0", "up")
        run("ip", "-n", inner, "route", "add", "default", "via", HOST)
    pairs = (("host", "203.0.113.1", "router", "203.0.113.2"), ("router", "198.51.100.1", "outside", OUTSIDE))
    for left, one, right, two in pairs:
        near, far = topology.ns(left), topology.ns(right)
        run("ip", "-n", near, "link", "add", right, "type", "veth", "peer", "name", left, "netns", far)
        for netns, device, address in ((near, right, one), (far, left, two)):
            run("ip", "-n", netns, "addr", "add", f"{address}/24", "dev", device)
            run("ip", "-n", netns, "link", "set", device, "up")
    run("ip", "-n", topology.ns("outside"), "route", "add", "default", "via", "198.51.100.1")
    run("ip", "-n", host, "route", "add", PAY, "via", "203.0.113.2")
    for name in ("host", "router"):
        run("ip", "netns", "exec", topology.ns(name), "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    _translate(topology)


def _translate(topology: Topology) -> None:
    """A published port (destination only), and a router that hides both sides."""
    published = f"tcp dport 8080 ip daddr {HOST} dnat to {WEB}:8000"
    pre, out, post = (f"type nat hook {hook} priority {at};" for hook, at in _HOOKS)
    rules = {
        "host": f"chain pre {{ {pre} {published}; }}\nchain out {{ {out} {published}; }}",
        "router": f"chain pre {{ {pre} ip daddr {VIP} dnat to 203.0.113.1;"
        f" ip daddr {PAY} tcp dport 443 dnat to {OUTSIDE}:8443; }}\n"
        f"chain post {{ {post} masquerade; }}",
    }
    for name, chains in rules.items():
        done = subprocess.run(
            ["ip", "netns", "exec", topology.ns(name), program("nft"), "-f", "-"],
            input=f"table ip kernobtest {{\n{chains}\n}}\n",
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"missing feature: nat in nftables ({done.stderr.strip()[:80]})")


def _services(topology: Topology, stack: contextlib.ExitStack) -> None:
    directory, python = topology.directory, topology.python
    nginx = directory / "nginx.conf"
    nginx.write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log stderr; worker_processes 2; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;\n"
        f"fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n"
        "server { listen 80; location / { proxy_pass http://127.0.0.1:9001; } } }\n"
    )
    haproxy = directory / "haproxy.cfg"
    haproxy.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        "frontend in\n bind *:8443\n default_backend web\nbackend web\n server one 127.0.0.1:80\n"
    )
    redis = [program("redis-server"), "--bind", WEB, "--port", "6379", "--save", "", "--dir", str(directory)]
    topology.commands["redis"] = "web", [*redis, "--protected-mode", "no"]
    topology.commands["postgresql"] = "db", _postgresql(stack)
    topology.commands["nginx"] = "host", [program("nginx"), "-c", str(nginx), "-p", str(directory)]
    topology.commands["haproxy"] = "host", [program("haproxy"), "-db", "-f", str(haproxy)]
    topology.commands["rabbitmq"] = "db", _rabbitmq(directory)
    names = [sys.executable, str(RESOLVER), HOST, "8053", f"{PAY_NAME}={PAY}"]
    topology.commands["resolver"] = "host", names
    python("payments", "outside", listen=[OUTSIDE, 8443])
    python("web", "web", listen=["0.0.0.0", 8000], workers=1)
    proxy = ("-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "8080", "-container-ip", WEB)
    python("proxy", "host", *proxy, "-container-port", "8000", listen=["0.0.0.0", 8080], relay=[WEB, 8000])
    name, command = topology.commands["proxy"]
    disguise = 'exec -a /usr/bin/docker-proxy "$0" "$@"'
    topology.commands["proxy"] = name, ["bash", "-c", disguise, *command]
    calls = [[WEB, 6379, "keep", REDIS], [DB, 5432, "short", POSTGRES], [DB, 5672, "short", AMQP]]
    calls += [[address, 443, "short", "x"] for address in (NOWHERE, NOWHERE_ELSE, PAY_NAME)]
    python("app", "host", listen=["0.0.0.0", 9001], workers=3, calls=calls)
    worker = [[DB, 5672, "short", AMQP], [DB, 5432, "short", POSTGRES], [HOST, 8080, "keep", HTTP]]
    python("worker", "host", calls=worker)
    scrape = [[HOST, 9001, "short", HTTP], [WEB, 6379, "short", REDIS], [HOST, 80, "short", HTTP]]
    python("scraper", "db", calls=[*scrape, [HOST, 8080, "short", HTTP]])
    python("browser", "host", calls=[["127.0.0.1", 8080, "short", HTTP]])
    python("client", "db", calls=[[HOST, 8443, "keep", HTTP]])
    python("self", "db", listen=["127.0.0.1", 7000], calls=[["127.0.0.1", 7000, "short", "x"]])
    python("remote", "outside", calls=[[VIP, 80, "short", HTTP]])
    python(JOB, "host", calls=[["127.0.0.1", 9001, "once", HTTP]])


def _postgresql(stack: contextlib.ExitStack) -> list[str]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries or not shutil.which("runuser"):
        pytest.skip("missing feature: postgresql")
    # not below pytest's own directory: each session of it on this machine shuts that to other users again
    data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kernob-test-pg-")))
    shutil.chown(data, "postgres", "postgres")
    initdb = [str(binaries[-1] / "initdb"), "-D", str(data), "-A", "trust", "--no-sync"]
    subprocess.run(["runuser", "-u", "postgres", "--", *initdb], check=True, capture_output=True, cwd="/")
    options = ["-h", DB, "-p", "5432", "-k", "", "-c", "fsync=off"]
    server = [str(binaries[-1] / "postgres"), "-D", str(data), *options]
    return ["runuser", "-u", "postgres", "--", *server]


def _rabbitmq(directory: Path) -> list[str]:
    """A broker with a node's name, files and port mapper of its own."""
    home = directory / "rabbitmq"
    home.mkdir()
    (home / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = {DB}:5672\nlog.console = false\nlog.file = {home}/broker.log\n"
    )
    variables = {
        "HOME": home, "RABBITMQ_NODENAME": "kernob@localhost", "RABBITMQ_CONFIG_FILE": home / "rabbitmq.conf",
        "RABBITMQ_MNESIA_BASE": home / "mnesia", "RABBITMQ_LOG_BASE": home, "RABBITMQ_PID_FILE": home / "pid",
        "ERL_CRASH_DUMP": home / "crash", "RABBITMQ_ENABLED_PLUGINS_FILE": home / "plugins",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
    }  # fmt: skip
    server = program("/usr/lib/rabbitmq/bin/rabbitmq-server")  # that of /usr/sbin becomes another user
    return ["env", *(f"{name}={value}" for name, value in variables.items()), server]


JOB = "job.py"
SERVERS = (
    "resolver", "redis", "postgresql", "rabbitmq", "payments", "web", "proxy", "app", "nginx", "haproxy",
)  # fmt: skip
CLIENTS = ("worker", "scraper", "browser", "client", "self", "remote")


@contextlib.contextmanager
def built(directory: Path) -> Iterator[Topology]:
    """The topology with everything in place and nothing started; all of it is removed at the end."""
    program("ip")
    topology = Topology(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(no_groups, topology)
        try:
            _network(topology, stack)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"missing feature: namespaces with bridge and veth ({error.stderr.strip()[:80]})")
        _services(topology, stack)
        topology.keep_containers()
        stack.enter_context(_resolv_conf(topology.ns("host")))
        stack.callback(topology.stop_all)
        yield topology


@contextlib.contextmanager
def _resolv_conf(netns: str) -> Iterator[None]:
    """`ip netns exec` has programs see this file in the place of the machine's."""
    directory = Path("/etc/netns", netns)
    was_there = directory.parent.exists()
    directory.mkdir(parents=True)
    try:
        (directory / "resolv.conf").write_text(f"nameserver {HOST}\n")
        yield
    finally:
        shutil.rmtree(directory)
        if not was_there:
            with contextlib.suppress(OSError):  # another run's is there, too
                directory.parent.rmdir()


def no_groups(topology: Topology) -> None:
    """Removes the control groups."""
    for root in _groups():
        parent = root / topology.mark
        for group in (*parent.glob("*/"), parent):
            with contextlib.suppress(OSError):
                group.rmdir()
