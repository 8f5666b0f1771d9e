# SPDX-License-Identifier: Apache-2.0
"""What is remembered between ticks: cumulative series, flows, names."""
