# SPDX-License-Identifier: Apache-2.0
"""Where bytes are kept in the kernel: the chosen shape beside the alternatives it was chosen from.

Run as `python -m benchmarks.shapes`. The alternatives are the C files beside this one, compiled with
bpf/, whose helpers they use.
"""
