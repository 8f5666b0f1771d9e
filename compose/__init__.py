# SPDX-License-Identifier: Apache-2.0
"""The stack of compose.yaml, brought up and asked by programs: the demo and the tests of the stack."""
