# SPDX-License-Identifier: Apache-2.0
"""Kernel lanes: boot a stock Debian kernel in an emulator and run one of the project's commands in it.

Enters: a suite's name and a command. Leaves: the command's console output, results and exit code.
Called by `lane.sh`, which `.ci/run` and developers call.

    lane.sh -> __main__ -> image (debian, packages, cache) -> guest
"""
