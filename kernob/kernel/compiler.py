# SPDX-License-Identifier: Apache-2.0
"""From the C files in bpf/ to a CompiledObject: maps with record types, programs as instructions.

In: the list of files, macros, struct offsets. Out: a CompiledObject, from the cache when nothing
changed. Called by `session`. The compiler itself runs in a child process (compile_child).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernob.errors import CompileError, PreconditionError
from kernob.kernel.compile_child import NO_BCC

log = logging.getLogger(__name__)

SOURCES = Path(__file__).resolve().parents[2] / "bpf"
RING_BUFFER = 27  # enum bpf_map_type; such a map has no keys, BCC gives it some for its own use
_TIMEOUT_S = 1200  # an emulated machine needs minutes, more where others keep it waiting
_CACHE_FILES = 8
_FORMAT = 1  # raise when the cached document changes its form


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as C declares it; `type` is enum bpf_map_type, record types are numpy's."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    key: np.dtype[Any]
    value: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class ProgramCode:
    """Instructions of one program; `references` are (instruction index, map name)."""

    name: str
    code: bytes
    references: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class CompiledObject:
    """What one compilation yields, independent of any process."""

    maps: Mapping[str, MapSpec]
    programs: Mapping[str, ProgramCode]


def compile_sources(
    files: tuple[str, ...],
    functions: tuple[str, ...],
    macros: Mapping[str, int],
    cache_dir: Path | None,
    tree: Path | None = SOURCES / "include",
) -> CompiledObject:
    """Compiles the named files of bpf/ as one unit.

    `macros` become -D options. `tree` is the header tree BCC is pointed to; None lets BCC look for
    the running kernel's own headers. Raises CompileError with the compiler's last lines, and
    PreconditionError where there is no BCC.
    """
    text = "\n".join((SOURCES / name).read_text(encoding="utf-8") for name in files)
    return compile_text(text, functions, macros, cache_dir, tree)


def compile_text(
    text: str,
    functions: tuple[str, ...],
    macros: Mapping[str, int],
    cache_dir: Path | None,
    tree: Path | None,
) -> CompiledObject:
    """Compiles one text; see compile_sources."""
    request = json.dumps(
        {
            "text": text,
            "cflags": [f"-D{name}={value}" for name, value in sorted(macros.items())],
            "functions": functions,
            "tree": str(tree) if tree else "",
        }
    )
    path = _cache_path(cache_dir, request, tree)
    cached = _read_cache(path)
    if cached:
        return cached
    document = _run_child(request)
    _write_cache(path, document)
    return _decode(document)


def _cache_path(cache_dir: Path | None, request: str, tree: Path | None) -> Path | None:
    if cache_dir is None:
        return None
    digest = hashlib.sha256(f"{_FORMAT}\n{sys.version_info[:2]}\n".encode())
    digest.update(request.encode())
    if tree:
        for header in sorted(tree.rglob("*.h")):
            digest.update(header.read_bytes())
    else:
        digest.update(os.uname().release.encode())
    child = Path(__file__).with_name("compile_child.py")
    digest.update(child.read_bytes())
    return cache_dir / f"programs-{digest.hexdigest()[:32]}.json"


def _read_cache(path: Path | None) -> CompiledObject | None:
    """What is cached, or None. Only a file of our own user is trusted: it becomes kernel code."""
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                log.warning("ignoring %s: others could have written it", path)
                return None
            found = _decode(json.load(stream))
            os.utime(stream.fileno())  # those used last are the ones that are kept
            return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CompileError) as error:
        log.warning("ignoring the cached programs in %s, which are damaged: %s", path, error)
        return None


def _write_cache(path: Path | None, document: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # last used first; a few are kept, for kernels and settings that alternate
        older = sorted(path.parent.glob("programs-*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        for stale in older[_CACHE_FILES - 1 :]:
            stale.unlink(missing_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            json.dump(document, stream)
        partial.replace(path)
    except OSError as error:
        log.info("compiled programs are not cached: %s", error)


def _run_child(request: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "kernob.kernel.compile_child"]
    root = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    try:
        child = subprocess.run(
            command,
            input=request,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=environment,
            check=False,
            start_new_session=True,  # Ctrl-C is for us to handle
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"the compiler did not finish: {error}") from error
    lines = [line for line in child.stderr.splitlines() if line.strip()]
    if child.returncode == NO_BCC:
        raise PreconditionError(f"no usable BCC ({' '.join(lines[-1:])}): install python3-bpfcc")
    if child.returncode or not child.stdout:
        errors = [line for line in lines if "error" in line.lower()] or lines[-3:] or ["no message"]
        raise CompileError(f"bpf/ did not compile ({_ending(child.returncode)}): {'; '.join(errors[:3])}")
    result = json.loads(child.stdout)
    if not isinstance(result, dict):
        raise CompileError("the compiler's answer is not a document")
    return result


def _ending(code: int) -> str:
    """How a process ended, by subprocess's return code: LLVM aborts, and the system kills what is too big."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _dtype(description: Any) -> np.dtype[Any]:
    if isinstance(description, str):
        return np.dtype(description)
    fields: list[Any] = []
    for name, kind, *shape in description:
        if shape:
            fields.append((name, _dtype(kind), tuple(shape[0])))
        else:
            fields.append((name, _dtype(kind)))
    return np.dtype(fields)


def _decode(document: dict[str, Any]) -> CompiledObject:
    maps = {}
    for entry in document["maps"]:
        spec = MapSpec(**{**entry, "key": _dtype(entry["key"]), "value": _dtype(entry["value"])})
        declared = (spec.key.itemsize, spec.value.itemsize)
        if spec.type != RING_BUFFER and declared != (spec.key_size, spec.value_size):
            raise CompileError(
                f"map {spec.name}: record type of {spec.key.itemsize}+{spec.value.itemsize} bytes, "
                f"kernel has {spec.key_size}+{spec.value_size}: pad its structs by hand"
            )
        maps[spec.name] = spec
    programs = {}
    for name, entry in document["programs"].items():
        references = tuple((index, map_name) for index, map_name in entry["references"])
        programs[name] = ProgramCode(name, base64.b64decode(entry["code"]), references)
    return CompiledObject(maps, programs)
