# SPDX-License-Identifier: Apache-2.0
"""What each answer of an OTLP endpoint is taken for, over real gRPC and HTTP connections on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from kernob.errors import ConfigError
from kernob.export.transport import MAX_RETRY_AFTER_S, Result, Transport, Verdict, make_transport, one_line
from kernob.export.transport_http import HttpTransport, retry_after
from tests.unit.receivers import (
    GrpcAnswer,
    GrpcReceiver,
    HttpAnswer,
    HttpReceiver,
    Options,
    Pki,
    make_pki,
    partial_success,
)

REQUEST = ExportMetricsServiceRequest()
REQUEST.resource_metrics.add().scope_metrics.add().metrics.add(name="process.network.io", unit="By" * 2000)
BODY = REQUEST.SerializeToString()
SENDING_S = 20.0


@contextlib.contextmanager
def transport_to(options: Options) -> Iterator[Transport]:
    transport = make_transport(options, "1.2.3")
    try:
        yield transport
    finally:
        transport.close()


def send_once(options: Options, timeout_s: float = SENDING_S) -> Result:
    with transport_to(options) as transport:
        return transport.send(BODY, timeout_s)


@pytest.fixture
def grpc_receiver() -> Iterator[GrpcReceiver]:
    with GrpcReceiver() as receiver:
        yield receiver


@pytest.fixture
def http_receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make certificates with")
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections: bound, so nobody else gets it, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_grpc_delivers_the_request_with_headers(grpc_receiver: GrpcReceiver, compression: str) -> None:
    """The request arrives as it was, with the user's headers and Kernob's name."""
    options = grpc_receiver.options(compression=compression, headers=(("X-Tenant", "a b"),))
    assert send_once(options) == Result(Verdict.ACCEPTED)
    (received,) = grpc_receiver.inbox.wait_for(1)
    assert received.message == REQUEST
    assert received.headers["x-tenant"] == "a b"
    assert received.headers["user-agent"].startswith("kernob/1.2.3 ")


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_http_delivers_the_request_with_headers(http_receiver: HttpReceiver, compression: str) -> None:
    """The request arrives as it was, compressed if asked for, with the user's headers and Kernob's name."""
    options = http_receiver.options(compression=compression, headers=(("x-tenant", "a b"),))
    assert send_once(options) == Result(Verdict.ACCEPTED)
    (received,) = http_receiver.inbox.wait_for(1)
    assert received.message == REQUEST
    assert received.headers[":path"] == "/v1/metrics"
    assert received.headers["content-type"] == "application/x-protobuf"
    assert received.headers.get("content-encoding") == (None if compression == "none" else "gzip")
    assert (received.body_bytes < 200) == (compression == "gzip")
    assert received.headers["x-tenant"] == "a b"
    assert received.headers["user-agent"] == "kernob/1.2.3"


def test_http_keeps_its_connection(http_receiver: HttpReceiver) -> None:
    """Five requests, a failure among them, go over one connection."""
    http_receiver.answers.extend([HttpAnswer(), HttpAnswer(503, body=b"busy")])
    with transport_to(http_receiver.options()) as transport:
        for _ in range(5):
            transport.send(BODY, SENDING_S)
    assert (len(http_receiver.inbox.requests), http_receiver.connections) == (5, 1)


GRPC_VERDICTS = {
    "CANCELLED": Verdict.RETRY,
    "DEADLINE_EXCEEDED": Verdict.RETRY,
    "ABORTED": Verdict.RETRY,
    "OUT_OF_RANGE": Verdict.RETRY,
    "UNAVAILABLE": Verdict.RETRY,
    "DATA_LOSS": Verdict.RETRY,
    "INVALID_ARGUMENT": Verdict.BAD_DATA,
    "RESOURCE_EXHAUSTED": Verdict.BAD_DATA,
    "UNAUTHENTICATED": Verdict.REFUSED,
    "PERMISSION_DENIED": Verdict.REFUSED,
    "UNIMPLEMENTED": Verdict.REFUSED,
    "NOT_FOUND": Verdict.REFUSED,
    "INTERNAL": Verdict.REFUSED,
    "UNKNOWN": Verdict.REFUSED,
}


@pytest.mark.parametrize("name", GRPC_VERDICTS)
def test_grpc_status_codes(grpc_receiver: GrpcReceiver, name: str) -> None:
    """Each code is retried or not as OTLP says; RESOURCE_EXHAUSTED without RetryInfo is not."""
    grpc_receiver.answers.append(GrpcAnswer(grpc.StatusCode[name], "the\nreason"))
    expected = Result(GRPC_VERDICTS[name], name.lower(), f"{name} the reason")
    assert send_once(grpc_receiver.options()) == expected


@pytest.mark.parametrize("name", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (Duration(seconds=7, nanos=500_000_000), 7.5),
        (Duration(), 0.0),
        (Duration(seconds=-3), 0.0),
        (Duration(seconds=86_400), MAX_RETRY_AFTER_S),
    ],
)
def test_grpc_retry_info(grpc_receiver: GrpcReceiver, name: str, delay: Duration, seconds: float) -> None:
    """RetryInfo makes RESOURCE_EXHAUSTED retryable and says after how many seconds, at most ten minutes."""
    grpc_receiver.answers.append(GrpcAnswer(grpc.StatusCode[name], "busy", delay))
    result = send_once(grpc_receiver.options())
    assert (result.verdict, result.retry_after_s) == (Verdict.RETRY, seconds)


HTTP_VERDICTS = {
    429: Verdict.RETRY,
    502: Verdict.RETRY,
    503: Verdict.RETRY,
    504: Verdict.RETRY,
    400: Verdict.BAD_DATA,
    413: Verdict.BAD_DATA,
    401: Verdict.REFUSED,
    403: Verdict.REFUSED,
    404: Verdict.REFUSED,
    405: Verdict.REFUSED,
    415: Verdict.REFUSED,
    500: Verdict.REFUSED,
}


@pytest.mark.parametrize("status", HTTP_VERDICTS)
def test_http_status_codes(http_receiver: HttpReceiver, status: int) -> None:
    """Each status is retried or not as OTLP says; the message of a Status in the body is passed on."""
    http_receiver.answers.append(HttpAnswer(status, body=b"\x12\x0bno\n\x1b[31m so"))
    result = send_once(http_receiver.options())
    assert (result.verdict, result.error_type) == (HTTP_VERDICTS[status], str(status))
    assert result.message == f"HTTP {status} no ?[31m so"


@pytest.mark.parametrize("status", [301, 307])
def test_http_does_not_follow_redirects(http_receiver: HttpReceiver, status: int) -> None:
    """Headers with credentials are not carried elsewhere: a redirect is a refusal."""
    http_receiver.answers.append(HttpAnswer(status, {"Location": "/elsewhere", "Content-Type": "text/html"}))
    result = send_once(http_receiver.options())
    assert (result.verdict, len(http_receiver.inbox.requests)) == (Verdict.REFUSED, 1)


@pytest.mark.parametrize(("status", "expected_s"), [(429, 7.0), (503, 7.0), (400, None)])
def test_http_retry_after(http_receiver: HttpReceiver, status: int, expected_s: float | None) -> None:
    """Retry-After counts on the statuses that are retried."""
    http_receiver.answers.append(HttpAnswer(status, {"Retry-After": "7"}))
    assert send_once(http_receiver.options()).retry_after_s == expected_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 3 ", 3.0),
        ("99999999999", MAX_RETRY_AFTER_S),
        ("Thu, 01 Jan 1970 00:16:45 GMT", 5.0),
        ("Thu, 01 Jan 1970 00:16:45 -0000", 5.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(value: str, seconds: float | None) -> None:
    """RFC 9110: delay-seconds or an HTTP date, here seen 1000 s after the epoch; anything else is nothing."""
    assert retry_after(value, now_unix_s=1000.0) == seconds


def test_grpc_partial_success(grpc_receiver: GrpcReceiver) -> None:
    """Rejected points and the reason are passed on; the request counts as taken."""
    grpc_receiver.answers.append(GrpcAnswer(response=partial_success(3, "too old")))
    assert send_once(grpc_receiver.options()) == Result(Verdict.ACCEPTED, message="too old", rejected=3)


def test_http_partial_success(http_receiver: HttpReceiver) -> None:
    """Rejected points and the reason are passed on; a 2xx whose body is no OTLP is plain success."""
    body = partial_success(3, "too old").SerializeToString()
    http_receiver.answers.extend([HttpAnswer(200, body=body), HttpAnswer(202, body=b"accepted, thanks")])
    with transport_to(http_receiver.options()) as transport:
        assert transport.send(BODY, SENDING_S) == Result(Verdict.ACCEPTED, message="too old", rejected=3)
        assert transport.send(BODY, SENDING_S) == Result(Verdict.ACCEPTED)


def test_a_refused_connection_is_retried(closed_port: int) -> None:
    """Nobody listening is a failure that may pass, told in one line by either transport."""
    by_grpc = send_once(Options(f"http://127.0.0.1:{closed_port}", "grpc"))
    by_http = send_once(Options(f"http://127.0.0.1:{closed_port}/v1/metrics", "http/protobuf"))
    assert (by_grpc.verdict, by_grpc.error_type) == (Verdict.RETRY, "unavailable")
    assert (by_http.verdict, by_http.error_type) == (Verdict.RETRY, "connection")
    assert "refused" in by_grpc.message
    assert by_http.message == "[Errno 111] Connection refused"


def test_a_slow_endpoint_times_out(grpc_receiver: GrpcReceiver, http_receiver: HttpReceiver) -> None:
    """An endpoint that does not answer in time is given up for now by either transport."""
    hold = threading.Event()
    grpc_receiver.answers.append(GrpcAnswer(until=hold))
    http_receiver.answers.append(HttpAnswer(act=lambda: hold.wait(SENDING_S)))
    by_grpc = send_once(grpc_receiver.options(), timeout_s=0.2)
    by_http = send_once(http_receiver.options(), timeout_s=0.2)
    hold.set()
    assert (by_grpc.verdict, by_grpc.error_type) == (Verdict.RETRY, "deadline_exceeded")
    assert (by_http.verdict, by_http.error_type) == (Verdict.RETRY, "timeout")


def test_closing_ends_a_grpc_call_under_way(grpc_receiver: GrpcReceiver) -> None:
    """`close` from another thread cancels a call whose answer does not come."""
    grpc_receiver.answers.append(GrpcAnswer(until=threading.Event()))
    transport = make_transport(grpc_receiver.options(), "")
    results: list[Result] = []
    sender = threading.Thread(target=lambda: results.append(transport.send(BODY, SENDING_S)))
    sender.start()
    grpc_receiver.inbox.wait_for(1)
    transport.close()
    sender.join(SENDING_S)
    assert [result.error_type for result in results] == ["cancelled"]
    assert transport.send(BODY, SENDING_S).error_type == "closed"


def test_tls_to_a_plain_port_says_so(grpc_receiver: GrpcReceiver, http_receiver: HttpReceiver) -> None:
    """A TLS handshake with a port that speaks none is told in one line that names the likely cause."""
    by_grpc = send_once(Options(f"https://127.0.0.1:{grpc_receiver.port}", "grpc"))
    by_http = send_once(Options(f"https://127.0.0.1:{http_receiver.port}/v1/metrics", "http/protobuf"))
    for result in (by_grpc, by_http):
        assert (result.verdict, result.error_type) == (Verdict.RETRY, "tls")
        assert result.message.startswith("TLS handshake failed, is it a plain-text port? (")
        assert "\n" not in result.message


def test_grpc_with_tls_and_client_certificate(pki: Pki) -> None:
    """The given authority is trusted, the own certificate shown; without it the server's door stays shut."""
    chain, key = (path.read_bytes() for path in pki.server)
    credentials = grpc.ssl_server_credentials([(key, chain)], pki.authority.read_bytes(), True)
    with GrpcReceiver(credentials) as receiver:
        secure = {"endpoint": f"https://localhost:{receiver.port}", "certificate": pki.authority}
        certificate, own_key = pki.client
        with_own = receiver.options(**secure, client_certificate=certificate, client_key=own_key)
        assert send_once(with_own) == Result(Verdict.ACCEPTED)
        assert send_once(receiver.options(**secure)).verdict is Verdict.RETRY
        unknown_authority = send_once(receiver.options(endpoint=secure["endpoint"]))
    assert (unknown_authority.verdict, unknown_authority.error_type) == (Verdict.RETRY, "tls")


def test_http_with_tls_and_client_certificate(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with gRPC; the setting also wins over REQUESTS_CA_BUNDLE."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pki.server[0]))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki.authority))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*pki.server)
    with HttpReceiver(context) as receiver:
        certificate, own_key = pki.client
        with_own = receiver.options(
            certificate=pki.authority, client_certificate=certificate, client_key=own_key
        )
        assert send_once(with_own) == Result(Verdict.ACCEPTED)
        assert send_once(receiver.options(certificate=pki.authority)).verdict is Verdict.RETRY
        assert send_once(receiver.options()).error_type == "tls"


def test_a_netrc_does_not_replace_the_users_header(
    http_receiver: HttpReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Authorization header that was configured is sent, whatever .netrc says of the host."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login eve password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    send_once(http_receiver.options(headers=(("authorization", "Bearer right"),)))
    assert http_receiver.inbox.requests[0].headers["authorization"] == "Bearer right"


@pytest.mark.parametrize(
    ("protocol", "endpoint"),
    [
        ("grpc", "localhost"),
        ("grpc", "http://:4317"),
        ("grpc", "http://host:port"),
        ("grpc", "http://host:99999"),
        ("grpc", "ftp://host:4317"),
        ("grpc", ""),
        ("http/protobuf", "localhost:4318"),
        ("http/protobuf", "http://"),
        ("http/protobuf", "http://host:port/"),
        ("http/protobuf", "http://[::1/"),
        ("http/protobuf", "unix:///run/x"),
    ],
)
def test_a_malformed_endpoint_is_refused_at_once(protocol: str, endpoint: str) -> None:
    """It takes one line, which names the endpoint and shows the right form, and nothing is sent."""
    with pytest.raises(ConfigError) as raised:
        make_transport(Options(endpoint, protocol), "")
    message = str(raised.value)
    assert message.startswith(f"OTLP endpoint {endpoint!r}: ")
    assert "://host:" in message
    assert "\n" not in message


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("field", ["certificate", "client_certificate", "client_key"])
def test_a_tls_file_that_cannot_work_is_refused_at_once(tmp_path: Path, protocol: str, field: str) -> None:
    """A missing file and one that is no PEM are told by what they are for and by their path."""
    bad = tmp_path / "bad.pem"
    options = dataclasses.replace(Options("https://localhost:4317", protocol), **{field: bad})  # type: ignore[arg-type]
    words = "OTLP " + field.replace("_", " ")
    with pytest.raises(ConfigError, match=f"^{words} {bad}: No such file or directory$"):
        make_transport(options, "")
    bad.write_text("secret")
    with pytest.raises(ConfigError, match=f"^{words} {bad}: not a PEM file$"):
        make_transport(options, "")


def test_an_unknown_protocol_is_refused() -> None:
    """Only the two protocols of the settings exist."""
    with pytest.raises(ConfigError, match="one of grpc, http/protobuf"):
        make_transport(Options("http://localhost:4318", "http/json"), "")


def test_http_uses_the_clock_it_is_given(http_receiver: HttpReceiver) -> None:
    """A date in Retry-After is compared with the injected clock."""
    http_receiver.answers.append(HttpAnswer(503, {"Retry-After": "Thu, 01 Jan 1970 00:16:45 GMT"}))
    transport = HttpTransport(http_receiver.options(), "kernob", now_unix_s=lambda: 1000.0)
    assert transport.send(BODY, SENDING_S).retry_after_s == 5.0
    transport.close()


def test_foreign_text_becomes_one_bounded_line() -> None:
    """Line breaks and escape sequences of a server do not reach the log; long texts are cut."""
    assert one_line("a\nb\t\x1b[31mc") == "a b ?[31mc"
    assert len(one_line("x" * 1000)) == 200
