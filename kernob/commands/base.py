# SPDX-License-Identifier: Apache-2.0
"""What every command begins with: its settings, and what its exit codes mean."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kernob.errors import ConfigError

if TYPE_CHECKING:
    from kernob.config import Settings

EXIT_USAGE = ConfigError.exit_code
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits(3)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

EXIT_CODES = f"""\b
Exit codes:
  0    done
  1    failed for a reason the message names, or the reader of the output left
  2    an option or setting is unknown, malformed or out of range
  3    something is missing before anything attached: root, bpf, BCC
  4    no agent could be reached
  5    the kernel refused something that is needed
  {EXIT_FAULT}   a fault in Kernob itself
  {EXIT_INTERRUPTED}  interrupted
"""


def load(config_file: Path | None, socket_path: str | None = None, *, quiet: bool = False) -> Settings:
    """Load the settings, and log as they say from here on; `quiet`: warnings only, unless they say more."""
    from kernob import log
    from kernob.config import load_settings

    overrides = {} if socket_path is None else {"socket_path": socket_path}
    settings = load_settings(os.environ, config_file, overrides)
    # numpy's library would start a thread a core, for arithmetic so small that they only wait for each other
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    by_default = settings.origin["log_level"] == "default"
    log.set_up("warning" if quiet and by_default else settings.log_level, sys.stderr, os.environ)
    return settings
