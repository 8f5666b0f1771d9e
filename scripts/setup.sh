#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds .venv with Kernob in it, and first installs the distribution's packages it stands on.
#
#   sh scripts/setup.sh          what `kernob` needs to run
#   sh scripts/setup.sh --dev    the same, and what tests and lint need
#
# Run again it does nothing when nothing changed. The environment stands on the distribution's own
# interpreter (not on whichever python3 comes first in PATH), because its BCC module belongs to that one.
# pip's own settings (PIP_*, pip.conf, proxies, certificates) are honoured.
# Exit codes: 0 done, 3 something is missing that this script cannot provide, else pip's or apt's code.
set -eu
unset PYTHONHOME PYTHONPATH

python=/usr/bin/python3
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
venv=.venv

fail() {
    echo "setup: $*" >&2
    exit 3
}

case "${1:-}" in
"") dev= ;;
--dev) dev=yes ;;
*) fail "unknown argument '$1' (only --dev is known)" ;;
esac

# ---- the distribution's part -------------------------------------------------------------------
# Each package is asked for by what it provides, so that other ways of installing it count too.
has_module() { "$python" -I -c "import $1" >/dev/null 2>&1; }
has_command() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

missing_packages() {
    if [ ! -x "$python" ]; then
        echo python3
        echo python3-venv
        echo python3-bpfcc
    else
        has_module ensurepip && has_module venv || echo python3-venv
        "$python" -I -c 'import importlib.util as u, sys; sys.exit(u.find_spec("bcc") is None)' || echo python3-bpfcc
    fi
    if [ -n "$dev" ]; then
        has_command ip || echo iproute2
        has_command cc || has_command gcc || echo gcc
        [ -e /usr/include/stdio.h ] || echo libc6-dev
    fi
}

install_packages() {
    packages=$(missing_packages | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null 2>&1 ||
        fail "missing: ${packages}- and there is no apt-get here; install what your distribution calls them, then run this again"
    [ "$(id -u)" -eq 0 ] ||
        fail "missing: ${packages}- run 'apt-get install ${packages% }' as root, then run this again"
    echo "setup: installing from your distribution: ${packages% }"
    export DEBIAN_FRONTEND=noninteractive
    # A machine that has just started often runs its own updates: wait for those.
    options="-y -qq --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300"
    # shellcheck disable=SC2086  # lists of words
    if ! apt-get install $options $packages >/dev/null 2>&1; then
        # No or outdated package lists are the usual cause: fetch them, then let apt speak.
        apt-get update -qq || fail "apt-get update failed; ${packages}could not be installed"
        # shellcheck disable=SC2086
        apt-get install $options $packages >/dev/null ||
            fail "apt-get could not install: ${packages% }"
    fi
    left=$(missing_packages | tr '\n' ' ')
    [ -z "$left" ] || fail "still missing after installing: ${left% } (does $python belong to the distribution?)"
}

# ---- the environment ---------------------------------------------------------------------------
fingerprint() { # changes when anything that shapes the environment changes
    {
        "$python" -I -c 'import sys; print(sys.version)'
        echo "$root"
        cat "$1" pyproject.toml scripts/setup.sh
    } | sha256sum | cut -d ' ' -f 1
}

is_current() { # stamp file, lock file
    [ -x "$venv/bin/python" ] && [ -x "$venv/bin/kernob" ] && [ -e "$1" ] && [ "$(cat "$1")" = "$(fingerprint "$2")" ]
}

same_interpreter() {
    [ -x "$venv/bin/python" ] &&
        [ "$("$venv/bin/python" -I -c 'import sys; print(sys.version)' 2>/dev/null)" = \
            "$("$python" -I -c 'import sys; print(sys.version)')" ] &&
        "$venv/bin/python" -I -m pip --version >/dev/null 2>&1
}

build_environment() {
    lock=requirements.lock
    stamp=$venv/.setup-stamp
    if [ -n "$dev" ]; then
        lock=requirements-dev.lock
        stamp=$venv/.setup-dev-stamp
    fi
    is_current "$stamp" "$lock" && return 0
    if ! same_interpreter; then
        echo "setup: creating $venv from $python"
        "$python" -I -m venv --clear --system-site-packages "$venv" || fail "could not create $venv with $python"
    fi
    rm -f "$venv/.setup-stamp" "$venv/.setup-dev-stamp"
    echo "setup: installing the pinned packages of $lock into $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --require-hashes --requirement "$lock"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --no-deps --no-build-isolation --editable .
    [ -z "$dev" ] || fingerprint requirements.lock >"$venv/.setup-stamp"
    fingerprint "$lock" >"$stamp"
    echo "setup: done: $venv/bin/kernob"
}

# ---- what this machine will not let it do: said now, in one line, not in the middle of a run -----
say_what_is_missing() {
    "$python" -I - <<'PYTHON' || true
import ctypes, errno, os, platform
number = {"x86_64": 321, "aarch64": 280}.get(platform.machine())
if os.geteuid() != 0:
    print("setup: note: not root: 'kernob run' and 'kernob top' need root to watch the kernel")
elif number is None:
    print(f"setup: note: Kernob was never tried on {platform.machine()}")
else:
    libc = ctypes.CDLL(None, use_errno=True)
    # BPF_MAP_CREATE of an array with one 8-byte value; the smallest thing the agent must be able to do.
    array = (ctypes.c_uint32 * 32)(2, 4, 8, 1)
    fd = libc.syscall(number, 0, ctypes.byref(array), ctypes.sizeof(array))
    if fd >= 0:
        os.close(fd)
    elif ctypes.get_errno() == errno.ENOSYS:
        print("setup: note: this kernel (or sandbox) has no bpf system call: 'kernob run' and 'kernob top' cannot work here")
    else:
        reason = os.strerror(ctypes.get_errno())
        print(f"setup: note: the bpf system call is refused ({reason}): a container needs CAP_BPF and CAP_PERFMON")
PYTHON
}

install_packages
"$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$python is $("$python" -V 2>&1), Kernob needs 3.10 or newer"
exec 9<requirements.lock
command -v flock >/dev/null 2>&1 && flock 9 # two at once: the second finds the work done
build_environment
say_what_is_missing
