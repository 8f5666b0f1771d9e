# SPDX-License-Identifier: Apache-2.0
"""What Kernob costs, measured. Each module prints its tables when run; none is a test."""
