# SPDX-License-Identifier: Apache-2.0
"""The one exception of the lanes: the lane itself failed, so the command's outcome is unknown."""

from __future__ import annotations


class LaneError(Exception):
    """One clear line: what could not be done, and where to read more."""

    exit_code = 125  # not a code that a test runner gives back; what git bisect and docker use likewise
