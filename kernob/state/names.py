# SPDX-License-Identifier: Apache-2.0
"""What things are called: the one place that other modules import names from.

`text` makes hostile strings printable, `services` names processes, `peers` classifies addresses.
"""

from __future__ import annotations

from kernob.state.peers import Classifier, ClassRule, peer_class
from kernob.state.services import container_of, needs_full_args, service_of
from kernob.state.text import CUT_MARK, sanitize, split_args

__all__ = [
    "CUT_MARK",
    "ClassRule",
    "Classifier",
    "container_of",
    "needs_full_args",
    "peer_class",
    "sanitize",
    "service_of",
    "split_args",
]
