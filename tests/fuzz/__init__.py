# SPDX-License-Identifier: Apache-2.0
"""Fuzzing harnesses, for development."""
