# SPDX-License-Identifier: Apache-2.0
"""Tests: unit without a kernel, kernel with one."""
