# SPDX-License-Identifier: Apache-2.0
"""The demo: a small business, faults in it, and what Kernob says of each; `python -m demo`."""
