# SPDX-License-Identifier: Apache-2.0
"""Tests of the whole stack, in containers, on this machine's Docker engine (`make test-stack`)."""
