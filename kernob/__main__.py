# SPDX-License-Identifier: Apache-2.0
"""The `kernob` command and `python -m kernob`: arguments enter, an exit code leaves.

Everything goes to `cli` but a plain `kernob health`: containers ask it every few seconds, and the command
line's library would double what it costs.
"""

import os
import sys


def main() -> int:
    """Run the command that the arguments name and return its exit code."""
    if sys.argv[1:] == ["health"]:
        from kernob import health

        return health.main(os.environ)
    if sys.argv[1:2] == ["run"]:
        import signal

        # Ctrl-C ends it, as SIGTERM does, until it has handlers of its own: nothing is to be told or undone.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kernob import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
