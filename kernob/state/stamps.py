# SPDX-License-Identifier: Apache-2.0
"""When a tick took place, as the points it makes are stamped: Unix time that does not go back.

In: the machine's clock. Out: one stamp a tick, for `pipeline`. A counter's higher value stamped before a
lower one looks like a reset to every backend, and counts again all that the series ever counted; so the
stamps wait for a clock that was set back, in steps of a few milliseconds. That keeps every sum exact.
Only a clock that was set back by more than five minutes is followed, and the log says so: nobody wants to
see nothing for an hour because a machine started with its clock an hour ahead.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

_WAIT_AT_MOST_NS: Final = 300 * 10**9


class Stamps:
    """Unix times in nanoseconds, each at least `apart_ns` after the one before."""

    def __init__(self, apart_ns: int, clock: Callable[[], int] = time.time_ns) -> None:
        self._apart_ns = apart_ns
        self._clock = clock
        self._latest_ns = clock()
        self._waiting = False

    def restart(self) -> int:
        """Begin anew at the clock's time; nothing was stamped yet."""
        self._latest_ns = self._clock()
        return self._latest_ns

    def next(self) -> int:
        """Return the stamp of this tick."""
        now_ns = self._clock()
        ahead_ns = self._latest_ns - now_ns
        if ahead_ns > _WAIT_AT_MOST_NS:
            _log.warning(
                "the clock was set back by %.0f s; points follow it, a query over both times counts twice",
                ahead_ns / 1e9,
            )
        elif ahead_ns > 0 and not self._waiting:
            _log.warning("the clock was set back by %.3f s; points wait for it to catch up", ahead_ns / 1e9)
        elif ahead_ns <= 0 and self._waiting:
            _log.warning("the clock has caught up")
        self._waiting = 0 < ahead_ns <= _WAIT_AT_MOST_NS
        if ahead_ns > _WAIT_AT_MOST_NS:
            self._latest_ns = now_ns
        else:
            self._latest_ns = max(now_ns, self._latest_ns + self._apart_ns)
        return self._latest_ns
