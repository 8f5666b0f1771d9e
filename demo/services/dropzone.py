# SPDX-License-Identifier: Apache-2.0
"""A place nobody has heard of: `dropzone.py ADDRESS PORT`; takes whatever comes, as storage.py does."""

from __future__ import annotations

import sys

from storage import main

if __name__ == "__main__":
    main(*sys.argv[1:])
