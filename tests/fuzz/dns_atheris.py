# SPDX-License-Identifier: Apache-2.0
"""The same check as dns_fuzz, by atheris (libFuzzer), which is faster; for development, not installed by us.

python -m tests.fuzz.dns_atheris CORPUS [-max_total_time=600 ...]

What reaches further than tests/fixtures/dns belongs there: `-merge=1 tests/fixtures/dns CORPUS` adds it.
"""

from __future__ import annotations

import importlib
import sys

atheris = importlib.import_module("atheris")

with atheris.instrument_imports(include=["kernob.state.dns_message", "kernob.state.hostname_text"]):
    from tests.fuzz.dns_fuzz import LONGEST, check


def main() -> None:
    """See the module."""
    atheris.Setup([*sys.argv, f"-max_len={LONGEST}"], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
