#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The agent's environment inside the image's build stage: `packages` from the lock, then `program` itself.
set -eu

venv=/opt/kernob/venv
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
if [ -s /run/secrets/ca ]; then
    export PIP_CERT=/run/secrets/ca
fi

case $1 in
packages)
    /usr/bin/python3 -I -m venv --system-site-packages "$venv"
    "$venv/bin/pip" install --quiet --retries 4 --require-hashes --only-binary=:all: --no-compile \
        --requirement requirements.lock
    ;;
program)
    # Kernob finds bpf/ beside its own folder, so it stays where it is and the environment points to it.
    "$venv/bin/pip" install --quiet --no-index --no-deps --no-build-isolation --editable .
    "$venv/bin/pip" uninstall --quiet --yes flit_core pip
    # Packages' own tests and C headers are a fifth of the environment, and nothing here uses them.
    find "$venv" -depth -type d \( -name tests -o -name test \) -path '*/site-packages/*' -exec rm -rf {} +
    find "$venv" \( -name '*.pyi' -o -name '*.a' -o -name '*.h' \) -delete
    rm -f "$venv"/bin/[Aa]ctivate* "$venv"/bin/pip*
    /usr/bin/python3 -m compileall -q -j 0 "$venv/lib" kernob
    kernob_version=$("$venv/bin/kernob" --version)
    echo "built: $kernob_version"
    ;;
esac
