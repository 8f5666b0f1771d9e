# SPDX-License-Identifier: Apache-2.0
"""state.tls_hello: the name a TLS client asks for, out of its first bytes."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernob.state.tls_hello import server_name


def hello(name: str | None) -> bytes:
    """What this machine's OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    out = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return out.read()


HELLO = hello("api.example.com")


def test_the_name_is_read_out_of_a_real_clients_hello() -> None:
    """As OpenSSL writes it."""
    assert server_name(HELLO) == b"api.example.com"
    assert server_name(HELLO + b"more") == b"api.example.com"
    assert server_name(hello("x" * 63 + ".example")) == b"x" * 63 + b".example"


def test_without_a_name_there_is_none() -> None:
    """Clients that connect by address send no SNI; nor is anything else a hello."""
    assert server_name(hello(None)) == b""
    assert server_name(b"GET / HTTP/1.1\r\n" + bytes(100)) == b""
    assert server_name(b"") == b""
    assert server_name(b"\x17" + HELLO[1:]) == b""
    assert server_name(HELLO[:5] + b"\x02" + HELLO[6:]) == b""


@pytest.mark.parametrize("size", range(0, len(HELLO), 7))
def test_a_hello_cut_short_has_its_whole_name_or_none(size: int) -> None:
    """Never a part of it."""
    assert server_name(HELLO[:size]) in (b"", b"api.example.com")


@given(st.binary(max_size=600), st.integers(0, len(HELLO)), st.integers(0, 40))
def test_no_bytes_do_harm(data: bytes, at: int, dropped: int) -> None:
    """Any bytes, and any bytes in the midst of a hello."""
    assert len(server_name(data)) <= len(data)
    changed = HELLO[:at] + data + HELLO[at + dropped :]
    assert len(server_name(changed)) <= len(changed)
