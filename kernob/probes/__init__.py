# SPDX-License-Identifier: Apache-2.0
"""One module per probe: its hooks, how its map rows decode, the metrics it feeds."""
