# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any suite, without touching this machine's own apt state.

Enters: a suite. Leaves: downloaded packages, sources lists. Called by image.py. The mirror is the one this
machine's apt already uses, its proxy and certificate settings apply, and every index is checked against
Debian's archive key. Interrupted downloads are resumed by apt.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import host
from .errors import LaneError

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYRINGS = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
INHERITED = re.compile(r"Acquire::(https?::|Retries|ForceIPv[46])")


@dataclass(frozen=True)
class Mirrors:
    """Where Debian comes from: URIs as apt writes them; `security` is None if this machine has none."""

    main: str
    security: str | None
    keyring: Path

    def sources(self, suite: str) -> str:
        """Return a sources.list for `suite`: the release and its security updates."""
        lines = [f"deb [signed-by={self.keyring}] {self.main} {suite} main"]
        if self.security:
            lines.append(f"deb [signed-by={self.keyring}] {self.security} {suite}-security main")
        return "\n".join(lines) + "\n"


def find_uri(listing: str, label: str, ending: str) -> str | None:
    r"""Return the first URI with `label` out of `URI|label` lines of apt's index targets.

    The label is empty until the machine's lists were fetched once; then the end of the URI decides.

    >>> find_uri("http://a.example/x/|Other\nhttp://b.example/debian/|Debian", "Debian", "debian")
    'http://b.example/debian/'
    """
    for line in listing.splitlines():
        uri, found = line.rsplit("|", 1)
        if found == label or (found == "" and uri.rstrip("/").endswith(f"/{ending}")):
            return uri
    return None


def index_targets() -> str:
    """Return this machine's package indexes as `URI|label` lines."""
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(LABEL)", "Created-By: Packages"]
    return host.output(listing)


def find_mirrors() -> Mirrors:
    """Return this machine's Debian mirrors (or KERNOB_LANE_MIRROR, KERNOB_LANE_SECURITY_MIRROR)."""
    main = os.environ.get("KERNOB_LANE_MIRROR")
    security = os.environ.get("KERNOB_LANE_SECURITY_MIRROR")
    if not main:
        listing = index_targets()
        main = find_uri(listing, "Debian", "debian")
        security = security or find_uri(listing, "Debian-Security", "debian-security")
    if not main:
        raise LaneError("this machine's apt has no Debian mirror; name one in KERNOB_LANE_MIRROR")
    for name in KEYRINGS:
        keyring = Path("/usr/share/keyrings", name)
        if keyring.exists():
            return Mirrors(main, security, keyring)
    raise LaneError("no Debian archive keyring; run tests/lanes/install.sh")


def inherited_settings() -> str:
    """Return this machine's proxy, certificate and retry settings of apt, as lines of apt.conf."""
    lines = host.output(["apt-config", "dump", "Acquire"]).splitlines()
    return "\n".join(line for line in lines if INHERITED.match(line) and not line.endswith('"";')) + "\n"


class PrivateApt:
    """An apt tree of its own for one suite: nothing is installed, packages are only found and downloaded."""

    def __init__(self, directory: Path, suite: str, mirrors: Mirrors, log: Path) -> None:
        self.archives = directory / "cache/archives"
        self._log = log
        self._config = directory / "apt.conf"
        for needed in ("state/lists/partial", "cache/archives/partial", "none"):
            (directory / needed).mkdir(parents=True, exist_ok=True)
        (directory / "status").write_text("")
        (directory / "sources.list").write_text(mirrors.sources(suite))
        self._config.write_text(
            f"""\
Dir::State "{directory}/state";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}/cache";
Dir::Etc::sourcelist "{directory}/sources.list";
Dir::Etc::sourceparts "{directory}/none";
Dir::Etc::preferences "{directory}/none/preferences";
Dir::Etc::preferencesparts "{directory}/none";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "5";
// A mirror may be a frozen snapshot; the guests are thrown away after a test.
Acquire::Check-Valid-Until "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear APT::Keep-Downloaded-Packages;
"""
        )

    def update(self) -> None:
        """Fetch the suite's package lists."""
        host.run(["apt-get", "-c", str(self._config), "update", "-q"], self._log)

    def download_closure(self, packages: Sequence[str]) -> None:
        """Download `packages`, Debian's essential ones, and all they depend on, into `archives`."""
        command = ["apt-get", "-c", str(self._config), "install", "-q", "-y", "--download-only"]
        host.run([*command, *packages, "?essential"], self._log)

    def depends(self, package: str) -> list[str]:
        """Return the names a package depends on directly."""
        listing = host.output(["apt-cache", "-c", str(self._config), "depends", package])
        return re.findall(r"^\s*\|?Depends: (\S+)$", listing, re.MULTILINE)

    def download(self, packages: Sequence[str], directory: Path) -> None:
        """Download just these packages into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        script = 'cd "$1" && shift && exec apt-get -q "$@"'
        arguments = ["-c", str(self._config), "download", *packages]
        host.run(["sh", "-c", script, "sh", str(directory), *arguments], self._log)
