# SPDX-License-Identifier: Apache-2.0
"""Every exception Kernob raises on purpose, and the exit code each one ends the program with.

KernobError                  1
|- ConfigError               2   a setting is unknown, malformed or out of range
|- PreconditionError         3   not root, no bpf, no BCC: nothing was attached
|- AgentUnreachableError     4   a client found no agent, or could not read its answer
|- StoreError                1   the stored history cannot be read
`- KernelError               5   the kernel refused something that is needed
   |- CompileError               clang or BCC rejected the program
   |- BtfError                   no usable type information
   |- MapError                   a map could not be created or read
   |- ProgramLoadError           the verifier (or a lock-down) refused a program
   `- AttachError                a hook could not be attached
"""

from __future__ import annotations


class KernobError(Exception):
    """Base of the tree. The message is one clear line: what, where, what would be valid."""

    exit_code = 1


class ConfigError(KernobError):
    """A setting is unknown, malformed or out of range."""

    exit_code = 2


class PreconditionError(KernobError):
    """The machine or the user lacks something needed before anything attaches."""

    exit_code = 3


class AgentUnreachableError(KernobError):
    """No agent answers on the socket."""

    exit_code = 4


class StoreError(KernobError):
    """The stored history cannot be opened or read."""


class KernelError(KernobError):
    """The kernel refused something that is needed."""

    exit_code = 5


class CompileError(KernelError):
    """The C sources did not compile."""


class BtfError(KernelError):
    """Type information is missing or malformed, or lacks a needed field."""


class MapError(KernelError):
    """A BPF map could not be created, read or written."""


class ProgramLoadError(KernelError):
    """The kernel refused to load a program; the message ends with the verifier's last lines."""


class AttachError(KernelError):
    """A loaded program could not be attached to its hook."""
