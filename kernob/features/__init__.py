# SPDX-License-Identifier: Apache-2.0
"""One module per subject of observation: what it does each tick with what its probe and its state know."""
