# SPDX-License-Identifier: Apache-2.0
"""`python -m kernob`: the same program as the `kernob` command. Arguments enter, an exit code leaves."""

import sys

from kernob.cli import main

if __name__ == "__main__":
    sys.exit(main())
