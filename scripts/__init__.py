# SPDX-License-Identifier: Apache-2.0
"""Programs for those who work on Kernob."""
