# SPDX-License-Identifier: Apache-2.0
"""The `kernob` command."""


def main() -> int:
    """Run the command line; returns the exit code."""
    return 0
