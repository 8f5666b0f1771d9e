# SPDX-License-Identifier: Apache-2.0
"""OTLP over HTTP with protobuf bodies: one POST a request, on a requests session.

Enters: serialized requests from `worker`. Leaves: requests on the wire, a `Result` each. Status codes
and Retry-After as OTLP 1.x, "OTLP/HTTP Response" and "OTLP/HTTP Throttling" (RFC 9110, 10.2.3).
"""

from __future__ import annotations

import gzip
import time
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import requests
from google.protobuf.message import DecodeError

from kernob.errors import ConfigError
from kernob.export.status import status_message
from kernob.export.transport import (
    MAX_RETRY_AFTER_S,
    OtlpOptions,
    Result,
    Signal,
    Verdict,
    one_line,
    read_pem,
    response_parser,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_PROTOBUF: Final = "application/x-protobuf"
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_BAD_DATA: Final = frozenset({400, 413, 422})
_GZIP_LEVEL: Final = 1
"""Nearly all of the gain at a fraction of the time: attribute names repeat in each point."""

_MAX_RESPONSE_BYTES: Final = 65_536


class HttpTransport:
    """A session with one endpoint, keeping its connection open between requests."""

    def __init__(
        self,
        options: OtlpOptions,
        user_agent: str,
        now_unix_s: Callable[[], float] = time.time,
        signal: Signal = Signal.METRICS,
    ) -> None:
        self._url = _checked(options.endpoint)
        self._parse = response_parser(signal)
        self._gzip = options.compression == "gzip"
        self._now_unix_s = now_unix_s
        self._session = requests.Session()
        # A callable in `auth` keeps requests from replacing the user's Authorization by one from .netrc.
        self._session.auth = lambda request: request
        self._session.headers.update({"User-Agent": user_agent, **dict(options.headers)})
        self._session.headers["Content-Type"] = _PROTOBUF
        if self._gzip:
            self._session.headers["Content-Encoding"] = "gzip"
        for path, what in (
            (options.certificate, "OTLP certificate"),
            (options.client_certificate, "OTLP client certificate"),
            (options.client_key, "OTLP client key"),
        ):
            if path is not None:
                read_pem(path, what)
        # Given per request and not on the session: there REQUESTS_CA_BUNDLE would win over the setting.
        self._verify = str(options.certificate) if options.certificate else True
        if options.client_certificate and options.client_key:
            self._session.cert = (str(options.client_certificate), str(options.client_key))

    def send(self, body: bytes, timeout_s: float) -> Result:
        """Send one serialized request; each wait takes up to `timeout_s` seconds."""
        data = gzip.compress(body, _GZIP_LEVEL, mtime=0) if self._gzip else body
        try:
            with self._session.post(
                self._url,
                data=data,
                timeout=timeout_s,
                allow_redirects=False,
                stream=True,
                verify=self._verify,
            ) as response:
                content = next(response.iter_content(_MAX_RESPONSE_BYTES), b"")
        except requests.exceptions.SSLError as error:
            message = f"TLS handshake failed, is it a plain-text port? ({_cause(error)})"
            return Result(Verdict.RETRY, "tls", one_line(message))
        except requests.exceptions.Timeout:
            return Result(Verdict.RETRY, "timeout", f"no answer within {timeout_s:g} s")
        except requests.exceptions.RequestException as error:
            return Result(Verdict.RETRY, "connection", one_line(_cause(error)))
        if response.status_code // 100 == 2:
            return self._accepted(content)
        return self._failure(response, content)

    def close(self) -> None:
        """Drop the connections."""
        self._session.close()

    def _accepted(self, content: bytes) -> Result:
        try:
            return self._parse(content)
        except DecodeError:
            return Result(Verdict.ACCEPTED)  # a 2xx is success also when its body is not OTLP's

    def _failure(self, response: requests.Response, content: bytes) -> Result:
        status = response.status_code
        verdict = Verdict.REFUSED
        retry_after_s = None
        if status in _RETRYABLE:
            verdict = Verdict.RETRY
            retry_after_s = retry_after(response.headers.get("Retry-After", ""), self._now_unix_s())
        elif status in _BAD_DATA:
            verdict = Verdict.BAD_DATA
        words = status_message(content) if response.headers.get("Content-Type") == _PROTOBUF else ""
        message = one_line(f"HTTP {status} {words or response.reason}")
        return Result(verdict, str(status), message, retry_after_s)


def _checked(endpoint: str) -> str:
    """Return the endpoint. Raises ConfigError unless it is an http or https URL with a host."""
    try:
        url = urlsplit(endpoint)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"OTLP endpoint {one_line(endpoint)!r}: a URL like http://host:4318/v1/metrics")
    return endpoint


def _cause(error: BaseException) -> BaseException:
    """Return the innermost reason of an error of requests, which wraps urllib3's and the system's."""
    while True:
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        if inner is None:
            return error
        error = inner


def retry_after(value: str, now_unix_s: float) -> float | None:
    """Return the seconds a Retry-After header asks for, by number or by date (RFC 9110); None for others."""
    try:
        if value.strip().isdecimal():
            delay_s = float(value)
        else:
            date = parsedate_to_datetime(value)
            delay_s = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - now_unix_s
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, delay_s), MAX_RETRY_AFTER_S)
