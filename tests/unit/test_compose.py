# SPDX-License-Identifier: Apache-2.0
"""The compose files: what .env.example documents is what they read, and every service is looked after.

What runs is tried by tests/stack; here the files are held against each other.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kernob import __version__
from kernob.config import SETTINGS

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose.yaml"
PACKAGES = ROOT / "compose/packages.yaml"
# ${NAME}, ${NAME:-default}, ${NAME:+used}; a default may hold another variable.
REFERENCE = re.compile(r"\$\{([A-Z_]+)(?::[-+]([^${}]*))?")
PASSED_ON = re.compile(r"^ {6}((?:KERNOB|OTEL)_[A-Z_]+):$", re.MULTILINE)
DOCUMENTED = re.compile(r"^#([A-Z_]+)=(.*)$", re.MULTILINE)


def documented() -> dict[str, str]:
    return dict(DOCUMENTED.findall((ROOT / ".env.example").read_text()))


def code(path: Path) -> str:
    """Return a file without its comments."""
    return re.sub(r"(^|\s)#.*$", "", path.read_text(), flags=re.MULTILINE)


def compose(*files: Path, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what compose makes of the files, with nothing set but `environ`."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("no docker compose")
    arguments = [docker, "compose", "--env-file", "/dev/null"]
    for file in files:
        arguments += ["-f", str(file)]
    arguments += ["config", "--format", "json"]
    # Without the caller's variables, which compose would read too.
    clean = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **(environ or {})}
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "compose warns"
    configuration: dict[str, Any] = json.loads(done.stdout)
    return configuration


def service(service_name: str, **environ: str) -> dict[str, Any]:
    """Return one service of compose.yaml under these settings."""
    found: dict[str, Any] = compose(COMPOSE, environ=environ)["services"][service_name]
    return found


def test_every_variable_is_documented_and_every_documented_one_is_read() -> None:
    """.env.example names exactly the variables that the compose files read."""
    read = {name for path in (COMPOSE, PACKAGES) for name, _ in REFERENCE.findall(code(path))}
    read |= set(PASSED_ON.findall(COMPOSE.read_text()))
    assert read == set(documented())


def test_the_documented_defaults_are_those_of_the_compose_file() -> None:
    """Each default in .env.example is the one that compose.yaml falls back to."""
    examples = documented()
    # Told apart by what a `:+` uses, and by three variables that fall back to another variable.
    others = {"KERNOB_ALERTMANAGER_URL", "GRAFANA_ADMIN_PASSWORD", "GRAFANA_ROOT_URL"}
    others |= {"KERNOB_BIND_GRAFANA", "KERNOB_BIND_OTLP"}
    for name, default in REFERENCE.findall(code(COMPOSE)):
        if name not in others:
            assert examples[name] == default, name


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, PACKAGES)], ids=["official", "packages"])
def test_every_service_is_looked_after(files: tuple[Path, ...]) -> None:
    """Each service has a health check, a restart policy, a memory limit and bounded logs."""
    for name, each in compose(*files)["services"].items():
        assert each["healthcheck"]["test"][0] == "CMD", name
        assert each["restart"] == "unless-stopped", name
        assert int(each["mem_limit"]) > 0, name
        assert each["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, PACKAGES)], ids=["official", "packages"])
def test_ports_are_published_on_loopback_only(files: tuple[Path, ...]) -> None:
    """Without settings no port is reachable from another machine."""
    ports = [port for each in compose(*files)["services"].values() for port in each.get("ports", [])]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_no_setting_of_the_stack_reaches_the_agent() -> None:
    """The agent, which refuses variables it does not know, gets only its own."""
    ports = {name: "1" for name in documented() if name.startswith("KERNOB_PORT_")}
    assert ports
    assert not set(ports) & set(service("agent", **ports)["environment"])


def test_agents_settings_are_passed_on_only_when_set() -> None:
    """A setting of the agent reaches it from .env; without one, its own default holds."""
    # A variable without a value is one that the container does not get.
    assert service("agent")["environment"].get("KERNOB_SCRAPE_INTERVAL") is None
    assert service("agent", KERNOB_SCRAPE_INTERVAL="5")["environment"]["KERNOB_SCRAPE_INTERVAL"] == "5"


def test_every_setting_of_the_agent_can_be_set_in_the_stack() -> None:
    """One that compose.yaml did not pass on would be ignored silently. Places in the container stand."""
    places = {"KERNOB_SOCKET", "KERNOB_STATE_DIR", "KERNOB_CACHE_DIR", "KERNOB_PROC_ROOT", "KERNOB_HOST_ROOT"}
    own = {each.variable for each in SETTINGS if each.variable.startswith("KERNOB_")}
    assert own - places - {"KERNOB_BTF"} <= set(PASSED_ON.findall(COMPOSE.read_text()))


def test_images_are_pinned_by_version() -> None:
    """No image is named without a tag, or with one that moves."""
    for name, each in compose(COMPOSE)["services"].items():
        named = [each["image"], *each.get("build", {}).get("args", {}).values()]
        for image in named:
            assert re.search(r":v?\d+\.\d+\.\d+$", image), f"{name}: {image}"


def test_no_account_without_a_password() -> None:
    """Grafana's account is made only when a password is set, and then with that one."""
    empty = service("grafana")["environment"]
    assert empty["GF_SECURITY_ADMIN_PASSWORD"] == empty["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == ""
    assert "disable_initial_admin_creation = true" in (ROOT / "compose/grafana/grafana.ini").read_text()
    given = service("grafana", GRAFANA_ADMIN_PASSWORD="horse")["environment"]
    assert given["GF_SECURITY_ADMIN_PASSWORD"] == "horse"
    assert given["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "false"


def test_alerts_go_nowhere_or_to_the_named_alertmanager() -> None:
    """Without an Alertmanager vmalert notifies nobody; with one, that one."""
    assert "-notifier.blackhole" in service("vmalert")["command"]
    named = service("vmalert", KERNOB_ALERTMANAGER_URL="http://a:9093")["command"]
    assert "-notifier.url=http://a:9093" in named
    assert not [argument for argument in named if "blackhole" in argument]


def test_links_of_alerts_lead_where_browsers_reach_grafana() -> None:
    """To its port on this host, else to the address a proxy gives it."""
    assert "-external.url=http://127.0.0.1:3001" in service("vmalert", KERNOB_PORT_GRAFANA="3001")["command"]
    named = service("vmalert", GRAFANA_ROOT_URL="https://g.example")["command"]
    assert "-external.url=https://g.example" in named


def test_home_dashboard_exists() -> None:
    """The dashboard that grafana.ini opens first is one of those that compose mounts."""
    settings = (ROOT / "compose/grafana/grafana.ini").read_text()
    home = re.search(r"^default_home_dashboard_path = /etc/kernob/dashboards/(\S+)$", settings, re.MULTILINE)
    assert home is not None
    assert (ROOT / "grafana/dashboards" / home[1]).is_file()


def test_the_agents_image_carries_kernobs_version() -> None:
    """The default tag of the agent's image is the version that is built into it."""
    assert service("agent")["image"] == f"kernob/agent:{__version__}"
