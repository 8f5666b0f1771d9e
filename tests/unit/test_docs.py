# SPDX-License-Identifier: Apache-2.0
"""What is written about the code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from kernob.probes import PROBES
from kernob.probes.traffic import Loss
from scripts import metrics_doc

ROOT = Path(__file__).resolve().parents[2]


def test_the_metrics_page_is_what_the_code_specifies() -> None:
    """docs/metrics.md is the generator's output, to the letter."""
    assert metrics_doc.TARGET.read_text(encoding="utf-8") == metrics_doc.document()


def test_losses_have_the_kernel_sides_order() -> None:
    """enum loss of bpf/types.h and Loss name the same indices."""
    text = (ROOT / "bpf" / "types.h").read_text(encoding="utf-8")
    body = re.search(r"enum loss \{(.*?)\}", text, re.DOTALL)
    assert body
    names = re.findall(r"LOSS_(\w+)", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL))
    assert names == [*(loss.name for loss in Loss), "MAX"]


def test_every_program_a_hook_names_is_in_the_sources() -> None:
    """Programs that probes ask for exist in bpf/."""
    for probe in PROBES:
        text = "".join((ROOT / "bpf" / name).read_text(encoding="utf-8") for name in probe.sources)
        written = set(re.findall(r"^(?:int |PROGRAM\()(\w+)", text, re.MULTILINE))
        asked = {a.program for hook in probe.hooks for c in hook.candidates for a in c.attachments}
        assert asked <= written


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link in README and docs/ names a file that is there."""
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
