# SPDX-License-Identifier: Apache-2.0
"""What OTLP servers say beside a failure: google.rpc.Status and the RetryInfo in it.

Enters: bytes from an HTTP body or from gRPC's trailing metadata. Leaves: a message, a delay. Called by
the transports. Malformed hints are no hints: the failure itself is told by its code.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]


def status_message(serialized: bytes) -> str:
    """Return the message of a serialized google.rpc.Status; "" if there is none."""
    try:
        return str(Status.FromString(serialized).message)
    except DecodeError:
        return ""


def retry_delay_s(serialized: bytes) -> float | None:
    """Return the delay of the RetryInfo among a Status' details (seconds, may be negative); None without."""
    info = RetryInfo()
    try:
        unpacked = any(detail.Unpack(info) for detail in Status.FromString(serialized).details)
    except DecodeError:
        return None
    return float(info.retry_delay.ToNanoseconds()) / 1e9 if unpacked else None
