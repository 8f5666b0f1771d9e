# SPDX-License-Identifier: Apache-2.0
"""Kernob: which process sends how many bytes to whom, from the kernel to the screen and to OTLP."""

__version__ = "0.1.0"
