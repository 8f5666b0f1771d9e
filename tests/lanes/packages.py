# SPDX-License-Identifier: Apache-2.0
"""The Python packages of the lock file, as a directory for the guest's Python.

Enters: requirements-dev.lock, the guest's Python version. Leaves: a directory to put on PYTHONPATH.
Called by image.py. Only wheels, only with the hashes of the lock file; no code of a package runs here.
"""

from __future__ import annotations

from pathlib import Path

from . import host
from .cache import Cache, content_key

# Linters and type checkers stay outside: the guest runs tests, and each of these is tens of megabytes.
WITHOUT = frozenset({"clang-format", "librt", "mypy", "mypy-extensions", "ruff"})
# Debian 12's C library is 2.36: newer wheels would not load there.
PLATFORMS = ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"] + [
    f"manylinux_2_{minor}_x86_64" for minor in range(5, 37)
]


def pip_environment(cache: Cache, log: Path) -> Path:
    """Return the interpreter of an environment that has nothing but pip; a bare machine has no pip."""
    version = host.output(["/usr/bin/python3", "-I", "-c", "import sys; print(sys.version)"])

    def build(directory: Path) -> None:
        # Nothing in it is called by its path, so that it may be moved to its final place afterwards.
        host.run(["/usr/bin/python3", "-I", "-m", "venv", str(directory)], log)

    return cache.entry("pip-environment", content_key([version]), build) / "bin/python"


def install(lock: Path, python_version: str, target: Path, cache: Cache, log: Path) -> None:
    """Fill `target` with what `lock` asks for under `python_version` ("3.11"); `cache` keeps the wheels."""
    python = str(pip_environment(cache, log))
    wanted = host.output(
        [
            python,
            "-I",
            str(Path(__file__).with_name("lockfile.py")),
            str(lock),
            python_version,
            ",".join(sorted(WITHOUT)),
        ]
    )
    requirements = target.with_suffix(".txt")
    requirements.write_text(wanted)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--cache-dir", str(cache.scratch("pip-cache")), "--retries", "8", "--no-compile"]
    command += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--target", str(target)]
    # The lock has settled what fits the guest; pip would compare with the interpreter it runs on.
    command += ["--ignore-requires-python"]
    command += ["--implementation", "cp", "--python-version", python_version]
    command += ["--abi", "cp" + python_version.replace(".", ""), "--abi", "abi3", "--abi", "none"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    # PYTHONPATH here is for this program, not for pip.
    host.run([*command, "-r", str(requirements)], log, environ={"PYTHONPATH": ""})
