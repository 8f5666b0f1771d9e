# SPDX-License-Identifier: Apache-2.0
"""What leaves: OTLP over the network or into a file, and snapshots on the agent's socket."""
