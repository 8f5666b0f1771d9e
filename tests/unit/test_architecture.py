# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the sources; the rules docs/architecture states."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernob"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A part is a subpackage, or a module of the package itself; what it may import, beside itself.
# Imports under TYPE_CHECKING do not count: a name in a signature ties nobody together at run time.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "log": set(),
    "model": {"errors"},
    "view": {"model", "errors"},
    "answer": {"view", "model"},
    "syscall_table": set(),
    "config_values": {"syscall_table", "errors"},
    "config_otel": {"config_values", "errors"},
    "config_lifecycle": {"config_values"},
    "config_settings": {"config_lifecycle", "config_otel", "config_values", "syscall_table"},
    "config_scores": {"config_settings", "model"},
    "config": {"config_scores", "config_settings", "config_otel", "config_values", "errors"},
    "kernel": {"syscall_table", "model", "errors"},
    "probes": {"kernel", "syscall_table", "model", "errors"},
    "state": {"syscall_table", "model", "errors"},
    "derive": {"state", "model"},
    "export": {"answer", "view", "config", "model", "errors"},
    "ui": {"answer", "view", "config", "config_values", "model", "errors"},
    "event_feed": {"state", "probes", "kernel", "model"},
    "socket_sweep": {"state", "kernel", "model"},
    "features": {
        "syscall_table",
        "socket_sweep",
        "derive",
        "state",
        "probes",
        "kernel",
        "config",
        "config_scores",
        "model",
        "errors",
    },
    "pipeline": {
        "event_feed",
        "features",
        "derive",
        "state",
        "probes",
        "kernel",
        "config",
        "model",
        "errors",
    },
    "agent": {"pipeline", "export", "state", "config", "model", "errors"},
    "examine": {"event_feed", "pipeline", "probes", "kernel", "view", "config", "model", "errors"},
    "health": {"config", "errors"},
    "commands": {
        "agent",
        "examine",
        "health",
        "ui",
        "state",
        "config",
        "config_values",
        "log",
        "model",
        "errors",
        "",
    },
    "cli": {"commands", "log", "errors", ""},
    "__main__": {"cli", "health"},
}


def path_of(source: Path) -> str:
    return source.relative_to(PACKAGE).as_posix()


# Libraries that stay behind one door, and the door (a path inside the package; a folder ends in /).
DOORS = {
    "bcc": ("kernel/",),
    "dynaconf": ("config.py",),
    "click": ("cli.py", "commands/"),
    "textual": ("ui/",),
    "rich": ("ui/",),
    "grpc": ("export/",),
    "requests": ("export/",),
    "tenacity": ("export/", "kernel/"),
}
# What a process that only shows help must not load; see also tests/unit/test_cli.py.
HEAVY = {"bcc", "grpc", "numpy", "requests", "textual", "opentelemetry", "google", "dynaconf"}
LIGHT = (
    "cli.py",
    "config.py",
    "config_otel.py",
    "config_lifecycle.py",
    "config_settings.py",
    "config_values.py",
    "errors.py",
    "health.py",
    "log.py",
    "syscall_table.py",
    *(path_of(path) for folder in ("commands", "model") for path in (PACKAGE / folder).glob("*.py")),
)


def part_of(source: Path) -> str:
    """The part a file belongs to: "kernel" for kernel/btf.py, "agent" for agent.py, "" for __init__.py."""
    first = source.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py").removesuffix("__init__")


def runtime_imports(source: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names a file imports when it runs, those inside functions included unless told otherwise."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                visit(other)
            return
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: a relative import hides who imports whom"
            module = node.module or ""
            found.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source.read_text(encoding="utf-8")))
    return found


def our_parts(names: set[str]) -> set[str]:
    """The parts of Kernob among dotted names; "" for what stands in the package itself (__version__)."""
    parts = set()
    for name in names:
        head, _, rest = name.partition(".")
        if head == "kernob":
            first = rest.partition(".")[0]
            known = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
            parts.add(first if known else "")
    return parts


def test_the_reader_of_imports_sees_all_of_them(tmp_path: Path) -> None:
    """Functions, aliases and else branches count; TYPE_CHECKING does not."""
    source = tmp_path / "x.py"
    source.write_text(
        "import os.path\nfrom kernob.model import FlowRow as F\nfrom kernob import __version__, view\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import grpc\nelse:\n    import numpy\n"
        "def f():\n    import bcc\n"
    )
    names = runtime_imports(source)
    assert {"os.path", "kernob.model.FlowRow", "numpy", "bcc"} <= names
    assert "grpc" not in names
    assert our_parts(names) == {"model", "view", ""}
    assert "bcc" not in runtime_imports(source, top_level_only=True)


@pytest.mark.parametrize("source", SOURCES, ids=path_of)
def test_imports_follow_the_flow_of_data(source: Path) -> None:
    """kernel -> probes -> state -> derive -> export and ui; pipeline and agent put them together."""
    part = part_of(source)
    imported = our_parts(runtime_imports(source)) - {part}
    if part == "":
        assert not imported, "kernob/__init__.py imports nothing of ours"
    else:
        assert part in ALLOWED, f"{part} is new: say here what it may import"
        assert imported - {""} <= ALLOWED[part]


@pytest.mark.parametrize("source", SOURCES, ids=path_of)
def test_libraries_stay_behind_their_door(source: Path) -> None:
    """BCC is reached by the kernel layer alone, dynaconf by config.py alone, and so on."""
    place = path_of(source)
    for library in {name.partition(".")[0] for name in runtime_imports(source)} & set(DOORS):
        assert place.startswith(DOORS[library]), f"{place} imports {library}"


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy_at_the_top(name: str) -> None:
    """A module everything imports must cost nothing."""
    imported = {each.partition(".")[0] for each in runtime_imports(PACKAGE / name, top_level_only=True)}
    assert imported & HEAVY == set()


@pytest.mark.parametrize("source", sorted([*SOURCES, *(ROOT / "tests").rglob("*.py")]), ids=lambda p: p.name)
def test_every_file_names_its_licence_and_purpose(source: Path) -> None:
    """An SPDX line first, a module docstring second; at most 400 lines of product code."""
    text = source.read_text(encoding="utf-8")
    lines = text.splitlines()
    first = lines[1] if lines[0].startswith("#!") else lines[0]
    assert first == "# SPDX-License-Identifier: Apache-2.0"
    assert ast.get_docstring(ast.parse(text))
    if source.is_relative_to(PACKAGE):
        assert len(lines) <= 400


@pytest.mark.parametrize("source", sorted((ROOT / "bpf").rglob("*.[ch]")), ids=lambda p: p.name)
def test_kernel_side_sources_are_gpl_2_only(source: Path) -> None:
    """bpf/ is GPL-2.0-only; the header tree under bpf/include may say so with the kernel's syscall note."""
    first = source.read_text(encoding="utf-8").splitlines()[0]
    assert "SPDX-License-Identifier: GPL-2.0" in first
