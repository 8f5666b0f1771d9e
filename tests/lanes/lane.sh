#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command of this project inside a stock Debian kernel; `lane.sh --help` says how.
# The program needs only the standard library of the distribution's python3.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export PYTHONPATH="${here%/lanes}" PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 -m lanes "$@"
