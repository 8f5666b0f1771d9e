# SPDX-License-Identifier: Apache-2.0
"""The kernel layer: type information, compilation, loading, attaching, map reads."""
