# SPDX-License-Identifier: Apache-2.0
"""Screens: clients of the agent that turn snapshots into tables."""
