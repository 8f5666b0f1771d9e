#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command of this project on a fresh Debian or Ubuntu that has python3 and make; `fresh.sh --help` says how.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export PYTHONPATH="${here%/lanes}" PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 -m lanes.fresh "$@"
