# SPDX-License-Identifier: Apache-2.0
"""The OTEL_* variables mean what the OpenTelemetry specification says they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernob.config import OtlpSettings, load_settings
from kernob.errors import ConfigError

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
METRICS_ENDPOINT = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"


def otlp(**environ: str) -> OtlpSettings:
    return load_settings(environ).otlp


def refusal(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("environ", "endpoint", "insecure"),
    [
        ({}, "http://localhost:4318/v1/metrics", True),
        ({PROTOCOL: "grpc"}, "http://localhost:4317", True),
        ({ENDPOINT: "http://c:4318"}, "http://c:4318/v1/metrics", True),
        ({ENDPOINT: "http://c:4318/"}, "http://c:4318/v1/metrics", True),
        ({ENDPOINT: "https://c/otlp"}, "https://c/otlp/v1/metrics", False),
        ({ENDPOINT: "https://c/otlp/"}, "https://c/otlp/v1/metrics", False),
        ({ENDPOINT: "HTTPS://c/a?key=1"}, "https://c/a/v1/metrics?key=1", False),
        ({METRICS_ENDPOINT: "http://c:4318/write"}, "http://c:4318/write", True),
        ({METRICS_ENDPOINT: "http://c:4318"}, "http://c:4318/", True),
        ({METRICS_ENDPOINT: "http://m:1", ENDPOINT: "http://c:2"}, "http://m:1/", True),
        ({ENDPOINT: "http://[::1]:4318"}, "http://[::1]:4318/v1/metrics", True),
        ({PROTOCOL: "grpc", ENDPOINT: "http://c:4317"}, "http://c:4317", True),
        ({PROTOCOL: "grpc", ENDPOINT: "http://c:4317/"}, "http://c:4317", True),
        ({PROTOCOL: "grpc", ENDPOINT: "https://c"}, "https://c:443", False),
        ({PROTOCOL: "grpc", ENDPOINT: "https://[2001:db8::1]:4317"}, "https://[2001:db8::1]:4317", False),
        ({PROTOCOL: "grpc", ENDPOINT: "c:4317"}, "https://c:4317", False),
        (
            {PROTOCOL: "grpc", ENDPOINT: "c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "TRUE"},
            "http://c:4317",
            True,
        ),
        (
            {PROTOCOL: "grpc", ENDPOINT: "https://c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
            "https://c:4317",
            False,
        ),
        (
            {PROTOCOL: "http/protobuf", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"},
            "http://localhost:4317",
            True,
        ),
    ],
)
def test_endpoints(environ: dict[str, str], endpoint: str, insecure: bool) -> None:
    """A general HTTP endpoint gets v1/metrics, one of the signal stays; the scheme decides on TLS."""
    settings = otlp(**environ)
    assert (settings.endpoint, settings.insecure) == (endpoint, insecure)


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "collector",
        "ftp://c:4318",
        "http://",
        "http://:4318",
        "http://c:0",
        "http://c:65536",
        "http://c:-1",
        "http://c:port",
        "http://[::1",
        "http://[::zz]:1",
        "http://c d:1",
        "http://c\n:1",
        "http://c:1/#fragment",
        "http://-c:1",
        "http://" + "x" * 300,
        "://c:1",
        "unix:///run/otel.sock",
        "http://ümlaut:1",
        "c:4317/path",
    ],
)
@pytest.mark.parametrize("variable", [ENDPOINT, METRICS_ENDPOINT])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_malformed_endpoints_are_refused(text: str, variable: str, protocol: str) -> None:
    """Each names the variable and a valid form."""
    message = refusal(**{variable: text, PROTOCOL: protocol})
    assert message.startswith(f"{variable} is ")
    assert "must be http://host:port or https://host:port (or host:port with protocol grpc)" in message
    assert message.isprintable()


def test_an_endpoint_must_fit_its_protocol() -> None:
    """Host and port alone are for gRPC; a path or a user is for HTTP."""
    assert "http:// or https://, because the protocol is http/protobuf" in refusal(**{ENDPOINT: "c:4317"})
    for text in ("http://c:4317/v1/metrics", "http://user@c:4317", "http://c:4317?a=1"):
        assert "because the protocol is grpc" in refusal(**{ENDPOINT: text, PROTOCOL: "grpc"})


def test_credentials_of_an_endpoint_are_never_shown() -> None:
    """Not even in the line that refuses it."""
    for text in (
        "http://user:pa@ss@c:99999",
        "http://user:pass@c:1/#x",
        "user:pass@c:99999",
        "http://u:pa/ss@c:0",
    ):
        message = refusal(**{ENDPOINT: text})
        assert "ss@" not in message
        assert "***@c" in message


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("a=1", (("a", "1"),)),
        (
            "Authorization=Basic%20dTpw, x-scope = tenant ,",
            (("authorization", "Basic dTpw"), ("x-scope", "tenant")),
        ),
        ("a=1,A=2", (("a", "2"),)),
        ("a=b=c==", (("a", "b=c=="),)),
        ("a=", (("a", ""),)),
    ],
)
def test_headers(text: str, headers: tuple[tuple[str, str], ...]) -> None:
    """W3C Baggage without properties: pairs by comma, values percent-encoded."""
    assert otlp(**{HEADERS: text}).headers == headers


@pytest.mark.parametrize(
    "text", ["a", "=1", "a b=1", "a=%zz", "a=%0d%0ax: y", "a=%00", "a=%ff", "é=1", "a=%e2%82%ac"]
)
def test_malformed_headers_are_refused_without_showing_them(text: str) -> None:
    """A header may be a secret, a malformed one too; line ends in a value would forge another header."""
    assert refusal(**{HEADERS: text}) == (
        f"{HEADERS} is *** (environment): must be name=value,name=value with percent-encoded values"
    )


@pytest.mark.parametrize("name", ["grpc-timeout", "trace-bin", "a!b"])
def test_grpc_refuses_header_names_it_cannot_carry(name: str) -> None:
    """gRPC reserves some names and allows fewer characters than HTTP."""
    assert otlp(**{HEADERS: f"{name}=1"}).headers == ((name, "1"),)
    assert "with protocol grpc" in refusal(**{HEADERS: f"{name}=1", PROTOCOL: "grpc"})


def test_variables_of_the_metrics_signal_come_before_the_general_ones(tmp_path: Path) -> None:
    """Headers of the signal replace the general ones whole; the origin names the variable that won."""
    settings = load_settings(
        {
            HEADERS: "a=1,b=2",
            "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "c=3",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
            "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "",
        }
    )
    assert settings.otlp.headers == (("c", "3"),)
    assert settings.otlp.timeout_s == 2.5
    assert settings.otlp.compression == "gzip"
    assert settings.origin["otlp.timeout_s"] == "environment OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"
    assert settings.origin["otlp.compression"] == "environment OTEL_EXPORTER_OTLP_COMPRESSION"


def test_certificates_must_be_readable_pem_files(tmp_path: Path) -> None:
    """A missing, unreadable or non-PEM file is found before anything starts."""
    pem, other = tmp_path / "ca.pem", tmp_path / "ca.der"
    pem.write_text("# comment\n-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
    other.write_bytes(b"\x30\x82")
    variable = "OTEL_EXPORTER_OTLP_CERTIFICATE"
    assert otlp(**{variable: str(pem)}).certificate == pem
    for path in (other, tmp_path, tmp_path / "absent"):
        assert "must be the absolute path of a readable PEM file" in refusal(**{variable: str(path)})


def test_a_client_certificate_and_its_key_come_together(tmp_path: Path) -> None:
    """Either alone cannot authenticate anybody."""
    pem = tmp_path / "client.pem"
    pem.write_text("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n")
    certificate, key = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY"
    both = otlp(**{certificate: str(pem), key: str(pem)}, OTEL_LOGS_EXPORTER="none")
    assert (both.client_certificate, both.client_key) == (pem, pem)
    assert refusal(**{certificate: str(pem)}).startswith(f"{certificate} is ")
    assert refusal(**{key: str(pem)}).startswith(f"{key} is ***")


@pytest.mark.parametrize(
    ("environ", "exporter"),
    [
        ({}, "otlp"),
        ({"OTEL_METRICS_EXPORTER": "none"}, "none"),
        ({"OTEL_SDK_DISABLED": "True"}, "none"),
        ({"OTEL_SDK_DISABLED": "false"}, "otlp"),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_METRICS_EXPORTER": "otlp"}, "none"),
    ],
)
def test_the_network_can_be_switched_off(environ: dict[str, str], exporter: str) -> None:
    """By the exporter's choice, or for all of OpenTelemetry."""
    assert otlp(**environ).exporter == exporter


@pytest.mark.parametrize(
    ("variable", "text", "valid"),
    [
        (PROTOCOL, "http/json", "must be grpc or http/protobuf"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "must be gzip or none"),
        ("OTEL_METRICS_EXPORTER", "prometheus", "must be otlp or none"),
        ("OTEL_METRICS_EXPORTER", "otlp,console", "must be otlp or none"),
        ("OTEL_SDK_DISABLED", "1", "must be true or false"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "yes", "must be true or false"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "must be a number of milliseconds from 1 to 600000"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", "must be a number of milliseconds from 100 to 3600000"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta", "must be cumulative"),
    ],
)
def test_what_kernob_cannot_do_is_refused(variable: str, text: str, valid: str) -> None:
    """Nothing is silently replaced by a default."""
    assert refusal(**{variable: text}) == f"{variable} is {text!r} (environment): {valid}"


def test_times_are_milliseconds() -> None:
    """OpenTelemetry's unit, kept as seconds."""
    settings = otlp(OTEL_METRIC_EXPORT_INTERVAL="15000", OTEL_EXPORTER_OTLP_TIMEOUT="1500")
    assert (settings.export_interval_s, settings.timeout_s) == (15.0, 1.5)
    assert otlp().export_interval_s is None


def test_the_service_name_comes_before_the_resource_attribute() -> None:
    """OTEL_SERVICE_NAME, then service.name of OTEL_RESOURCE_ATTRIBUTES, then kernob."""
    text = "service.name=from-attributes,deployment.environment.name=a%2Cb%20c"
    assert load_settings({}).resource_attributes == (("service.name", "kernob"),)
    assert load_settings({"OTEL_RESOURCE_ATTRIBUTES": text}).resource_attributes == (
        ("service.name", "from-attributes"),
        ("deployment.environment.name", "a,b c"),
    )
    both = load_settings({"OTEL_RESOURCE_ATTRIBUTES": text, "OTEL_SERVICE_NAME": "named"})
    assert both.resource_attributes[0] == ("service.name", "named")


@pytest.mark.parametrize("text", ["abc", "a=1,b", "=1", "a=%", "a=%4", "a=%ff", "\udcff=1"])
def test_malformed_resource_attributes_are_refused_whole(text: str) -> None:
    """One broken pair discards the variable, says the specification; here it ends the start."""
    assert "must be key=value,key=value with percent-encoded values" in refusal(OTEL_RESOURCE_ATTRIBUTES=text)


def logs(**environ: str) -> OtlpSettings:
    return load_settings(environ).otlp_logs


def test_logs_have_their_own_variables_before_the_general_ones() -> None:
    """Each signal takes its own first; the general HTTP endpoint is a base to both."""
    settings = load_settings(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/base/",
            "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "b=2",
            "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "gzip",
        }
    )
    assert settings.otlp.endpoint == "http://collector:4318/base/v1/metrics"
    assert settings.otlp_logs.endpoint == "http://collector:4318/base/v1/logs"
    assert (settings.otlp.headers, settings.otlp_logs.headers) == ((("a", "1"),), (("b", "2"),))
    assert (settings.otlp.timeout_s, settings.otlp_logs.timeout_s) == (10.0, 2.5)
    assert (settings.otlp.compression, settings.otlp_logs.compression) == ("gzip", "none")
    assert settings.origin["otlp_logs.endpoint"] == "environment OTEL_EXPORTER_OTLP_ENDPOINT"
    assert settings.origin["otlp_logs.timeout_s"] == "environment OTEL_EXPORTER_OTLP_LOGS_TIMEOUT"
    assert settings.origin["otlp.timeout_s"] == "default"


def test_logs_may_go_elsewhere_or_nowhere() -> None:
    """An endpoint of its own is taken as it is; gRPC has no path; none of them sends none."""
    assert logs().endpoint == "http://localhost:4318/v1/logs"
    assert logs(OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="http://loki:3100/otlp/v1/logs").endpoint == (
        "http://loki:3100/otlp/v1/logs"
    )
    grpc = logs(OTEL_EXPORTER_OTLP_LOGS_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="c:4317")
    assert (grpc.endpoint, grpc.protocol, grpc.insecure) == ("https://c:4317", "grpc", False)
    assert logs(OTEL_EXPORTER_OTLP_PROTOCOL="grpc").endpoint == "http://localhost:4317"
    assert logs(OTEL_LOGS_EXPORTER="none").exporter == "none"
    assert logs(OTEL_METRICS_EXPORTER="none").exporter == "otlp"
    assert logs(OTEL_SDK_DISABLED="true").exporter == "none"


def test_what_does_not_fit_logs_says_so() -> None:
    """An endpoint that only metrics can use names logs, and how to go without."""
    only_metrics = {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}
    assert refusal(**only_metrics).endswith("(for logs; OTEL_LOGS_EXPORTER=none sends none)")
    assert otlp(**only_metrics, OTEL_LOGS_EXPORTER="none").endpoint == "https://c:4317"
