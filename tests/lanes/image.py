# SPDX-License-Identifier: Apache-2.0
"""A guest's disks: a Debian system with its stock cloud kernel, and that kernel's headers.

Enters: a suite, the project's lock file. Leaves: cached directories with root.ext4, vmlinuz, initrd.
Called by __main__.py. The kernel, its modules and its initial ramdisk are Debian's own, unchanged.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import debian, host, packages
from .cache import Cache, content_key
from .errors import LaneError

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
# What decides the contents of an image, besides the suite and the lock file.
RECIPE = ("image.py", "debian.py", "packages.py", "lockfile.py", "guest/lane-init")
GUEST_PACKAGES = (
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "python3",
    "python3-bpfcc",
    "iproute2",
    "kmod",
    "mount",
    "netbase",
    "nftables",
    "procps",
    "strace",
    "zstd",
)
UNUSED_FILES = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
SPARE_MIB = 1024  # free space in the guest's root file system


@dataclass(frozen=True)
class Suite:
    """A Debian release that a lane boots, and the Python version it ships ("3.11")."""

    name: str
    python_version: str


SUITES = {suite.name: suite for suite in (Suite("bookworm", "3.11"), Suite("trixie", "3.13"))}


class ImageBuilder:
    """Builds, or finds in the cache, what one suite's guest boots from."""

    def __init__(self, suite: Suite, project: Path, cache: Cache, say: Callable[[str], None]) -> None:
        self._suite = suite
        self._lock = project / "requirements-dev.lock"
        self._cache = cache
        self._say = say
        self._log = cache.scratch("logs") / f"{suite.name}.log"

    def system(self, *, refresh: bool = False) -> Path:
        """Return a directory with root.ext4, vmlinuz, initrd, kernel-release and header-packages/."""
        if not self._lock.exists():
            raise LaneError(f"{self._lock} is missing: the guest's Python packages are taken from it")
        recipe = [(HERE / name).read_bytes() for name in RECIPE]
        key = content_key([self._suite.name, *recipe, self._lock.read_bytes()])
        return self._cache.entry(f"{self._suite.name}-system", key, self._build_system, refresh=refresh)

    def headers(self, system: Path) -> Path:
        """Return a directory with headers.ext4: the kernel headers that belong to `system`'s kernel."""
        release = (system / "kernel-release").read_text()
        key = content_key([release, (HERE / "image.py").read_bytes()])

        def build(building: Path) -> None:
            self._say("unpacking the kernel headers")
            tree = building / "tree"
            tree.mkdir()
            for package in sorted((system / "header-packages").glob("*.deb")):
                host.run(["dpkg-deb", "-x", str(package), str(tree)], self._log)
            self._make_disk(tree / "usr/src", building / "headers.ext4", "headers")
            shutil.rmtree(tree)

        return self._cache.entry(f"{self._suite.name}-headers", key, build)

    def _build_system(self, building: Path) -> None:
        self._log.write_text("")
        tree = building / "tree"
        mirrors = debian.find_mirrors()
        apt = debian.PrivateApt(
            self._cache.scratch(f"apt-{self._suite.name}"), self._suite.name, mirrors, self._log
        )
        self._say("downloading Debian packages (some 170 MB the first time)")
        apt.update()
        apt.download_closure(GUEST_PACKAGES)
        self._say("downloading Python packages")
        python_packages = building / "python-packages"
        packages.install(self._lock, self._suite.python_version, python_packages, self._cache, self._log)
        self._say("building the root file system")
        self._bootstrap(tree, apt.archives, python_packages, mirrors)
        release = self._take_kernel(tree / "boot", building)
        headers = f"linux-headers-{release}"
        common = [name for name in apt.depends(headers) if name.endswith("-common")]
        apt.download([headers, *common], building / "header-packages")
        self._make_disk(tree, building / "root.ext4", "root")
        for leftover in (tree, python_packages):
            shutil.rmtree(leftover)

    def _bootstrap(self, tree: Path, archives: Path, python_packages: Path, mirrors: debian.Mirrors) -> None:
        settings = tree.with_name("apt.conf")
        settings.write_text(
            debian.inherited_settings()
            + 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n'
            + 'Acquire::Check-Valid-Until "false";\n'
        )
        sources = tree.with_name("sources.list")
        sources.write_text(mirrors.sources(self._suite.name))
        debs, wheels, init = (
            shlex.quote(str(path)) for path in (archives, python_packages, HERE / "guest/lane-init")
        )
        command = ["mmdebstrap", "--mode=root", "--variant=essential", "--format=directory"]
        command += [
            f"--include={','.join(GUEST_PACKAGES)}",
            f"--aptopt={settings}",
            "--skip=essential/unlink",
        ]
        command += ["--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={glob}" for glob in UNUSED_FILES)]
        command += [
            '--setup-hook=mkdir -p "$1/var/cache/apt/archives"',
            f'--setup-hook=cp {debs}/*.deb "$1/var/cache/apt/archives"',
            # A ramdisk with just what finds the root disk: it is unpacked by an emulated processor.
            '--setup-hook=mkdir -p "$1/etc/initramfs-tools/conf.d"',
            '--setup-hook=printf "MODULES=list\\nCOMPRESS=zstd\\n" > "$1/etc/initramfs-tools/conf.d/lane"',
            '--setup-hook=printf "virtio_pci\\nvirtio_blk\\next4\\n" > "$1/etc/initramfs-tools/modules"',
            f'--customize-hook=cp -a {wheels} "$1/opt/python-packages"',
            '--customize-hook=chroot "$1" python3 -m compileall -q -j 2 /opt/python-packages || true',
            f'--customize-hook=install -m 755 {init} "$1/usr/sbin/lane-init"',
            '--customize-hook=printf "127.0.0.1 localhost\\n::1 localhost\\n" > "$1/etc/hosts"',
            '--customize-hook=echo lane > "$1/etc/hostname"; rm -f "$1/etc/resolv.conf"',
        ]
        host.run([*command, self._suite.name, str(tree), str(sources)], self._log)

    @staticmethod
    def _take_kernel(boot: Path, destination: Path) -> str:
        kernels = sorted(boot.glob("vmlinuz-*"))
        if len(kernels) != 1:
            raise LaneError(
                f"expected one kernel in the guest's /boot, found {[path.name for path in kernels]}"
            )
        release = kernels[0].name.removeprefix("vmlinuz-")
        kernels[0].rename(destination / "vmlinuz")
        (boot / f"initrd.img-{release}").rename(destination / "initrd")
        (destination / "kernel-release").write_text(release)
        return release

    def _make_disk(self, tree: Path, disk: Path, label: str) -> None:
        files = [path.lstat() for path in tree.rglob("*")]
        # Blocks of 4 KiB, rounded up for each file, and an inode each; a tenth more for ext4's own tables.
        used_mib = sum(4096 * (1 + stat.st_size // 4096) for stat in files) // 2**20
        size = f"{used_mib * 11 // 10 + SPARE_MIB}M"
        inodes = str(len(files) + 50_000)
        command = [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-L",
            label,
            "-O",
            "^has_journal",
            "-b",
            "4096",
            "-N",
            inodes,
        ]
        host.run([*command, "-d", str(tree), str(disk), size], self._log)
