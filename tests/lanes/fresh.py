# SPDX-License-Identifier: Apache-2.0
"""Tries what a new user types on a fresh system: a minimal one with python3 and make, and a clean clone.

Enters: a suite and a command (`make setup`). Leaves: its output and exit code. Called by fresh.sh.
The system is a directory that the command runs in under the host's kernel, with the host's network; its
mounts are private and go away with it. 125 if the system could not be built.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import debian, guest, host
from .__main__ import PROJECT, catch_signals, speaker
from .cache import Cache, content_key, default_root, remove_tree
from .errors import LaneError
from .image import SUITES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UBUNTU_SUITES = ("jammy", "noble")
KEYRING_SUITE = "trixie"  # the first Debian that carries Ubuntu's keyring
PRESENT = ("apt", "ca-certificates", "make", "python3")
# Where this machine says which certificates to trust, for pip and apt in the fresh system.
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

# $1 the system's directory, then pairs of host directory and place; then -- and the command.
ENTER = """\
set -eu
root=$1; shift
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
shift
exec chroot "$root" sh -c 'cd /root/kernob && exec "$@"' sh "$@"
"""


def sources_of(suite: str, cache: Cache, log: Path) -> str:
    """Return the sources.list of a suite, Debian's or Ubuntu's."""
    mirrors = debian.find_mirrors()
    if suite not in UBUNTU_SUITES:
        return mirrors.sources(suite)
    mirror = os.environ.get("KERNOB_LANE_UBUNTU_MIRROR") or debian.find_uri(
        debian.index_targets(), "Ubuntu", "ubuntu"
    )
    if not mirror:
        raise LaneError("this machine's apt has no Ubuntu mirror; name one in KERNOB_LANE_UBUNTU_MIRROR")

    def fill(building: Path) -> None:
        apt = debian.PrivateApt(cache.scratch(f"apt-{KEYRING_SUITE}"), KEYRING_SUITE, mirrors, log)
        apt.update()
        apt.download(["ubuntu-keyring"], building)
        for package in building.glob("*.deb"):
            host.run(["dpkg-deb", "-x", str(package), str(building)], log)

    keys = cache.entry("ubuntu-keyring", content_key([KEYRING_SUITE]), fill)
    keyring = keys / "usr/share/keyrings/ubuntu-archive-keyring.gpg"
    places = (suite, f"{suite}-updates", f"{suite}-security")
    return "".join(f"deb [signed-by={keyring}] {mirror} {place} main universe\n" for place in places)


def build(suite: str, cache: Cache, say: Callable[[str], None]) -> Path:
    """Return the cached directory that holds the minimal system as `tree`."""
    log = cache.scratch("logs") / f"fresh-{suite}.log"
    sources = sources_of(suite, cache, log)

    def fill(building: Path) -> None:
        say("building a minimal system")
        log.write_text("")
        (building / "sources.list").write_text(sources)
        (building / "apt.conf").write_text(
            debian.inherited_settings() + 'Acquire::Languages "none";\nAcquire::Check-Valid-Until "false";\n'
        )
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
        command += [f"--include={','.join(PRESENT)}", f"--aptopt={building / 'apt.conf'}"]
        command += ["--dpkgopt=force-unsafe-io"]
        if suite in UBUNTU_SUITES:
            # The system trusts its own keys; the keyring that the sources name exists on the host only.
            forget = r"sed -i 's/ \[signed-by=[^]]*\]//'"
            command += [f'--customize-hook={forget} "$1"/etc/apt/sources.list.d/*.list']
        host.run([*command, suite, str(building / "tree"), str(building / "sources.list")], log)

    key = content_key([suite, Path(__file__).read_bytes(), sources])
    return cache.entry(f"fresh-{suite}", key, fill)


def borrowed(environ: dict[str, str]) -> tuple[list[tuple[Path, str]], dict[str, str]]:
    """Return what of the host's network set-up the system needs: directories to bind, variables to set.

    Only certificates, proxies and pip's settings: a fresh machine in the same network would have them.
    """
    binds: list[tuple[Path, str]] = []
    settings = {name: value for name, value in environ.items() if name.lower().endswith("_proxy")}
    settings |= {name: value for name, value in environ.items() if name.startswith("PIP_")}
    for name in CERTIFICATE_VARIABLES:
        bundle = Path(environ.get(name, ""))
        if bundle.is_file():
            settings[name] = f"/run/certificates/{bundle.name}"
            pair = (bundle.resolve().parent, "/run/certificates")
            binds += [pair] if pair not in binds else []
    for word in environ.get("PIP_FIND_LINKS", "").split():
        if Path(word).is_dir():
            binds.append((Path(word), word))
    return binds, settings


def try_command(system: Path, command: Sequence[str], cache: Cache) -> int:
    """Run the command in a copy of the system that holds a clean clone; return its exit code."""
    work = Path(tempfile.mkdtemp(dir=cache.scratch("run")))
    root = work / "root"
    process = None
    try:
        host.run(["cp", "-a", "--reflink=auto", str(system / "tree"), str(root)], work / "log")
        for name in guest.project_files(PROJECT):
            place = root / "root/kernob" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, place)
        for name in ("etc/resolv.conf", "etc/pip.conf"):
            if Path("/", name).exists():
                shutil.copy(Path("/", name), root / name)
        binds, settings = borrowed(dict(os.environ))
        pairs = [str(part) for pair in binds for part in pair]
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", ENTER, "sh", str(root), *pairs, "--", *command],
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **settings},
            start_new_session=True,
        )
        # Seen but not yet waited for, it keeps its group's number until what it left running is ended.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        host.end_group(process)
        return process.returncode
    finally:
        if process is not None:
            host.end_group(process)
        remove_tree(work)


def main(argv: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="fresh.sh",
        usage="%(prog)s SUITE -- COMMAND...",
        description="Run a command of this project on a fresh, minimal Debian or Ubuntu (host's kernel).",
        epilog="example: tests/lanes/fresh.sh trixie -- sh -c 'make setup && make doctor'",
    )
    parser.add_argument("suite", choices=[*SUITES, *UBUNTU_SUITES], help="release")
    border = argv.index("--") if "--" in argv else len(argv)
    suite = parser.parse_args(argv[:border]).suite
    command = list(argv[border + 1 :])
    if not command:
        parser.error("no command: put it after --")
    catch_signals()
    say = speaker(f"fresh {suite}")
    try:
        host.check_ready()
        cache = Cache(default_root(), say)
        system = build(suite, cache, say)
        say(shlex.join(command))
        code = try_command(system, command, cache)
    except LaneError as error:
        say(f"LANE FAILED: {error}")
        return LaneError.exit_code
    say(f"exit code {code}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
