# SPDX-License-Identifier: Apache-2.0
"""The stack of compose.yaml as the demo runs it: a project of its own, free ports, and in a hurry.

Enters: a directory for what is generated. Leaves: a running Stack. What differs from the stack as shipped is
here and nowhere else: figures come every two seconds, rules wait for seconds instead of minutes
(compose/rules.py), and disks of the demo's (loop devices) count as disks.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compose.project import PACKAGES, ROOT, Stack, run
from compose.rules import hours_as_seconds, quick

from .business import IMAGE, PAYMENTS_NAME

PROJECT = "kernob-demo"
PROBED = "otel/opentelemetry-collector-contrib:0.158.0"
QUIET = ("agent", "collector", "victoriametrics", "vmalert")
"""What the fast form starts: neither Grafana nor VictoriaLogs."""
SETTINGS = {"KERNOB_HOSTMETRICS_INTERVAL": "2s", "KERNOB_EVALUATION_INTERVAL": "2s"}
LEARNING_S = 20
AGENT = {
    "KERNOB_SCRAPE_INTERVAL": "2",
    "KERNOB_RESEND_INTERVAL": "10",
    "KERNOB_SCORE_BUCKET": "2",
    "KERNOB_SCORE_WINDOW": "30",
    "KERNOB_SCORE_HALF_LIFE": "5",
    # In milliseconds: before a service has been seen for long, what is usual has to be said.
    "KERNOB_SCORE_OBJECTIVES": f"{PAYMENTS_NAME}=10",
    "KERNOB_LEARNING_PERIOD": str(LEARNING_S),
    "KERNOB_CRASH_LOOP_WINDOW": "20",
    "KERNOB_SYSCALLS": "read,write,epoll_wait,futex,fdatasync",
}
_COLLECTOR = {
    "receivers": {
        "host_metrics": {
            "scrapers": {
                "disk": {"exclude": {"match_type": "regexp", "devices": [r"^(ram|zram|sr|fd|nbd)\d+$"]}},
                "process": {"scrape_process_delay": "5s"},
            }
        }
    }
}


def registry_answers() -> bool:
    """Whether official images can be had."""
    words = ("docker", "buildx", "imagetools", "inspect", PROBED)
    try:
        return subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def hasten(file: str, rules: str) -> str:
    """The rules of one file as the demo evaluates them."""
    rules = quick(rules)
    if file == "host.yaml":
        leak, disk = rules.split("  - name: kernob-disk", 1)
        # the disk of the demo is a loop device, which is none in life; who fills it is asked of the last 30 s
        disk = disk.replace('"(loop|ram', '"(ram').replace("[5m]", "[30s]").replace("in 5 min", "in 30 s")
        rules = hours_as_seconds(leak) + "  - name: kernob-disk" + disk
    return rules


def prepare(place: Path, packages: bool, say: Callable[[str], None]) -> Stack:
    """Write what the stack needs into `place`; the Stack, not yet up."""
    rules = place / "rules"
    rules.mkdir()
    for file in (ROOT / "victoriametrics" / "rules").glob("*.yaml"):
        (rules / file.name).write_text(hasten(file.name, file.read_text()))
    (place / "collector.yaml").write_text(json.dumps(_COLLECTOR))  # JSON is YAML
    base = PACKAGES if packages else ("compose.yaml",)
    plain = Stack(PROJECT, (), dict(SETTINGS), base, say)
    overlay = place / "overlay.json"
    overlay.write_text(json.dumps(_overlay(place, json.loads(plain.compose("config", "--format", "json")))))
    return Stack(PROJECT, (str(overlay),), plain.settings, base, say)


def _overlay(place: Path, config: dict[str, Any]) -> dict[str, Any]:
    def command(service: str) -> list[str]:
        return [word.replace("$", "$$") for word in config["services"][service]["command"]]

    return {
        "services": {
            "agent": {"environment": AGENT},
            "collector": {
                "command": [*command("collector"), "--config=/etc/kernob-demo.yaml"],
                "volumes": [f"{place}/collector.yaml:/etc/kernob-demo.yaml:ro"],
            },
            "vmalert": {
                "command": [*command("vmalert"), "-remoteWrite.flushInterval=1s"],
                "volumes": [f"{place}/rules:/etc/kernob/rules:ro"],
            },
        }
    }


def build(packages: bool) -> None:
    """The images. Nothing to do where they are there and nothing changed."""
    if packages:
        names = "base agent collector victoriametrics demo"
        run("env", f"STACK_IMAGES={names}", "sh", "docker/stack-images.sh", limit_s=2400)
    else:
        file = "docker/demo/Dockerfile"
        run("docker", "build", "-q", "-f", file, "--target", "programs", "-t", IMAGE, ".", limit_s=900)
