# SPDX-License-Identifier: Apache-2.0
"""A fake agent, a path for its socket, and a server that serves the one on the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kernob.export.socket import SnapshotServer
from tests.unit.fake_agent import FakeAgent


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    fake = FakeAgent()
    yield fake
    fake.end()


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


@pytest.fixture
def server(agent: FakeAgent, socket_path: Path) -> Iterator[SnapshotServer]:
    with SnapshotServer(socket_path, agent) as running:
        yield running
        agent.end()
