# SPDX-License-Identifier: Apache-2.0
"""What all tests share: no example may fail for taking long, since machines are shared and noisy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kernob", deadline=None, print_blob=True)
settings.load_profile("kernob")
