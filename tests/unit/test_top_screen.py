# SPDX-License-Identifier: Apache-2.0
"""`kernob top`'s full screen: what it shows and what its keys do."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from kernob.errors import AgentUnreachableError, KernelError
from kernob.model import FlowRow
from kernob.ui.client import Feed, LocalFeed
from kernob.ui.live import TopApp
from kernob.view import Request, Sort
from tests.unit.fake_agent import BUSY, FAILSAFE_S, HOSTILE, FakeAgent, flow, snapshot


def screen_lines(app: TopApp) -> list[str]:
    return ["".join(part.text for part in strip) for strip in app.screen._compositor.render_strips()]


def screen_text(app: TopApp) -> str:
    return "\n".join(screen_lines(app))


def pids(app: TopApp) -> list[int]:
    view = app._view
    assert view is not None
    return [row.pid for row in view.rows]


class Session:
    """One full screen on a fake agent in the same process."""

    def __init__(self, app: TopApp, agent: FakeAgent, pilot: Pilot[int]) -> None:
        self.app, self.agent, self.pilot = app, agent, pilot
        self._second = 0

    async def tick(self, *flows: FlowRow) -> None:
        """Publish a snapshot and wait until it is shown."""
        self._second += 1
        self.agent.publish(snapshot(*flows, second=self._second), subscribers=1)
        wanted = self._second * 10**9
        await self.until(lambda: self.app._view is not None and self.app._view.time_unix_ns == wanted)

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + FAILSAFE_S
        while not condition():
            assert time.monotonic() < deadline, screen_text(self.app)
            await self.pilot.pause(0.01)
        await self.pilot.pause()

    async def until_shown(self, text: str) -> None:
        await self.until(lambda: text in screen_text(self.app))

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)


def drive(
    script: Callable[[Session], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
    open_feed: Callable[[FakeAgent, Request], Feed] = LocalFeed,
) -> TopApp:
    """Run the screen, let the script press keys, and return the app."""
    agent = FakeAgent()
    app = TopApp(lambda request: open_feed(agent, request), Request(limit=500), retry_s=0.01)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await script(Session(app, agent, pilot))

    try:
        asyncio.run(run())
    finally:
        agent.end()
    return app


def test_first_screen() -> None:
    """Before the first window the screen says what it waits for; then rows, header, detail and keys stand."""

    async def script(session: Session) -> None:
        assert "Waiting for the first window (1 s)" in screen_text(session.app)
        await session.tick(*BUSY)
        shown = screen_lines(session.app)
        assert len(shown) == 24
        assert all(cell_len(line) == 80 for line in shown)
        assert re.match(r" kernob  web-01 .* LIVE $", shown[0])
        assert re.match(r" TX 1\.00 kB/s .* 3 flows  3 processes $", shown[1])
        assert shown[2].startswith(" busiest rsync.service 90%")
        assert shown[3].split() == [
            "▼SHARE",
            "SERVICE/PROC",
            "PID",
            "DESTINATION",
            "SCORE",
            "FAIL",
            "TX/s",
            "RX/s",
        ]
        assert shown[4].split() == ["90%", "rsync", "11", "→192.0.2.1:443", "900", "0"]
        assert shown[7].strip() == ""
        assert shown[21].split() == ["flows", "1-3", "of", "3", "by", "share"]
        assert "rsync[11]  service rsync.service  tcp client →192.0.2.1:443 (external)" in shown[22]
        assert shown[23].startswith(" s Sort   r Reverse   g Group   / Filter   p Pause   ? Help   q Quit")

    drive(script)


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (60, 12), (30, 6), (10, 3)])
def test_hostile_names(size: tuple[int, int]) -> None:
    """Whatever processes call themselves, every line keeps its width and shows only visible text."""

    async def script(session: Session) -> None:
        await session.tick(*HOSTILE)
        for group in "gggg":
            shown = screen_lines(session.app)
            assert [cell_len(line) for line in shown] == [size[0]] * size[1]
            assert all(line.isprintable() for line in shown)
            await session.press("down", group)
        if size[0] >= 120:
            await session.until_shown("[red]bold[/red]")
            await session.until_shown("[@click=app.be")

    drive(script, size)


def test_sort_keys() -> None:
    """s and S step through the orders, digits choose one, r reverses; the screen names the order."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        assert pids(session.app) == [11, 12, 13]
        await session.press("s")
        await session.until_shown("by tx rate")
        assert "▼TX/s" in screen_text(session.app)
        await session.press("5")
        await session.until(lambda: pids(session.app) == [13, 12, 11])
        assert "by tx total" in screen_text(session.app)
        await session.press("r")
        await session.until(lambda: pids(session.app) == [11, 12, 13])
        assert "by tx total, reversed" in screen_text(session.app)
        await session.press("7")
        await session.until(lambda: pids(session.app) == [13, 12, 11])
        await session.press("S", "S", "S", "S", "S", "S", "S")
        await session.until_shown("by score")
        await session.press("S")
        await session.until_shown("by failures")
        await session.press("S")
        await session.until_shown("by destination")
        await session.press("f")
        await session.until_shown("by failures")
        await session.press("0", "1")
        await session.until_shown("by share")

    drive(script)


def test_every_digit_has_its_order() -> None:
    """The digits 1 to 9, 0, f and w choose the orders in the order the help lists them."""

    async def script(session: Session) -> None:
        for digit, sort in zip("1234567890fw", Sort, strict=True):
            await session.press(digit)
            assert session.app._request.sort is sort

    drive(script)


def test_groups() -> None:
    """g and G change what a row stands for."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY, flow(11, "rsync", 1.0, address="198.51.100.1", peer="198.51.100.1"))
        for key, count in (
            ("g", "processes 1-3 of 3"),
            ("g", "services 1-3 of 3"),
            ("g", "destinations 1-2 of 2"),
        ):
            await session.press(key)
            await session.until_shown(count)
        await session.press("G")
        await session.until_shown("services 1-3 of 3")

    drive(script)


def test_filter() -> None:
    """The filter narrows while typing, and its letters are no commands.

    Enter keeps it, typing again replaces it, Esc shows all.
    """

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        await session.press("slash", "N", "g")
        await session.until(lambda: pids(session.app) == [12])
        assert "filter Ng" in screen_text(session.app)
        await session.press("enter")
        await session.tick(*BUSY, flow(14, "nginx", 500.0))
        assert pids(session.app) == [14, 12]
        await session.press("slash", "q", "p")
        await session.until_shown("No flow matches “qp”; 4 are hidden by the filter.")
        assert "PAUSED" not in screen_text(session.app)
        await session.press("escape")
        await session.until(lambda: len(pids(session.app)) == 4)
        await session.press("slash", "c", "enter", "escape")
        await session.until(lambda: len(pids(session.app)) == 4)

    drive(script)


@pytest.mark.parametrize("key", ["p", "space"])
def test_pause(key: str) -> None:
    """A paused screen stands still through ticks, still sorts and filters, and goes on where asked."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        await session.press(key)
        await session.until_shown("PAUSED")
        before = screen_lines(session.app)
        session.agent.publish(snapshot(flow(99, "new", 1e6), second=50))
        await session.pilot.pause(0.1)
        assert screen_lines(session.app) == before
        assert "p Resume" in before[23]
        await session.press("8", "r")
        await session.until(lambda: pids(session.app) == [13, 12, 11])
        await session.press("slash", "c", "u", "enter")
        await session.until(lambda: pids(session.app) == [13])
        await session.press("escape", key)
        await session.until(lambda: "PAUSED" not in screen_text(session.app))
        session.agent.publish(snapshot(flow(98, "newer", 1e6), second=51))
        await session.until(lambda: pids(session.app) == [98])

    drive(script)


def test_help() -> None:
    """? explains keys and columns at 80x24 without a scroll bar, and goes away again."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        await session.press("question_mark")
        await session.until_shown("figures are incomplete")
        shown = screen_text(session.app)
        for words in ("order by the next", "one row is", "q Ctrl-C   quit", "process ended"):
            assert words in shown
        await session.tick(*BUSY)
        assert "figures are incomplete" in screen_text(session.app)
        await session.press("escape")
        await session.until_shown("by share")

    drive(script)


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
def test_quit(key: str) -> None:
    """q and Ctrl-C end the screen with 0, also while a filter is typed (Ctrl-C) or help is open."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        if key == "ctrl+c":
            await session.press("slash", "x")
        await session.press(key)

    app = drive(script)
    assert (app.return_value, app.failure) == (0, None)


def test_the_bar_follows_its_row() -> None:
    """A bar that was moved stays on its flow when rows change places; on top it stays on top."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        await session.tick(*BUSY, flow(14, "wget", 5000.0))
        await session.until_shown("wget[14]")
        await session.press("down", "j")
        await session.until_shown("nginx[12]")
        await session.tick(flow(12, "nginx", 9000.0), flow(14, "wget", 1.0))
        await session.until_shown("nginx[12]")
        await session.tick(flow(14, "wget", 1.0))
        await session.until_shown("wget[14]")

    drive(script)


def test_moving_through_many_rows() -> None:
    """Paging, Home and End reach every row that was fetched, and the rest is counted."""
    many = [flow(pid, rate=float(10_000 - pid)) for pid in range(10_000)]

    async def script(session: Session) -> None:
        await session.tick(*many)
        await session.until_shown("flows 1-17 of 10,000  +9,500 more: 45.1 MB/s")
        await session.press("pagedown", "pagedown")
        await session.until_shown("flows 17-33 of 10,000")
        await session.press("up")
        await session.until_shown("curl[31]")
        await session.press("end")
        await session.until_shown("flows 484-500 of 10,000")
        await session.until_shown("curl[499]")
        await session.press("down", "home", "up", "pageup")
        await session.until_shown("flows 1-17 of 10,000")
        await session.until_shown("curl[0]")

    drive(script)


def test_mouse() -> None:
    """A click selects a row, the wheel moves on."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        await session.pilot.click("#rows", offset=(10, 1))
        await session.until(lambda: "nginx[12]" in screen_lines(session.app)[22])

    drive(script)


def test_resize() -> None:
    """Another size is filled at once, with the columns that fit it."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        await session.pilot.resize_terminal(120, 40)
        await session.until_shown("SERVICE   ")
        assert [cell_len(line) for line in screen_lines(session.app)] == [120] * 40
        await session.pilot.resize_terminal(60, 10)
        await session.until_shown("SERVICE/")
        assert [cell_len(line) for line in screen_lines(session.app)] == [60] * 10

    drive(script)


def test_empty_screen() -> None:
    """Without any traffic the screen says what that means instead of showing nothing."""

    async def script(session: Session) -> None:
        await session.tick()
        shown = screen_text(session.app)
        assert "No process has sent or received a byte for 1s, since Kernob began to count." in shown
        assert "nobody moved a byte in this window" in shown

    drive(script)


def test_agent_that_goes_away() -> None:
    """While no agent answers the last figures stay, marked as old, and a new agent is taken up."""
    broken = threading.Event()

    class Breaking:
        def __init__(self, agent: FakeAgent, request: Request) -> None:
            if broken.is_set():
                raise AgentUnreachableError("no agent answers on [b]/run\x1b[2J")
            self.feed = LocalFeed(agent, request)
            self.ask, self.close = self.feed.ask, self.feed.close

        def views(self) -> Iterator[object]:
            for view in self.feed.views():
                yield view
                if broken.is_set():
                    raise AgentUnreachableError("went away")

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        broken.set()
        await session.press("r")  # makes the feed move
        await session.until_shown("NO AGENT")
        await session.until_shown("no agent answers on [b]/run�[2J; trying again")
        assert "rsync" in screen_text(session.app)
        session.agent.standing = snapshot(flow(77), second=60)
        broken.clear()
        await session.until(lambda: pids(session.app) == [77])
        assert "LIVE" in screen_lines(session.app)[0]

    drive(script, open_feed=Breaking)  # type: ignore[arg-type]


def test_agent_in_this_process_fails() -> None:
    """The screen closes, and what ended the agent is there to be told."""

    async def script(session: Session) -> None:
        await session.tick(*BUSY)
        session.agent.failure = OSError("the map is gone")
        session.agent.end()
        await session.until(lambda: session.app.failure is not None)

    assert isinstance(drive(script).failure, KernelError)
