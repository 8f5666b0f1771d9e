# SPDX-License-Identifier: Apache-2.0
"""Pure functions of state: what follows from the totals."""
