#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Lints what the stack is made of: Dockerfiles, shell scripts, YAML, and compose's own view of its files.
# The linters are hash-locked in docker/lint.lock and live in .venv/lint.
set -eu

cd "$(dirname "$0")/.."
lint=.venv/lint
if [ "$(cat "$lint/.stamp" 2>/dev/null)" != "$(sha256sum <docker/lint.lock)" ]; then
    echo "lint: installing the linters of docker/lint.lock"
    /usr/bin/python3 -I -m venv --clear "$lint"
    "$lint/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r docker/lint.lock
    sha256sum <docker/lint.lock >"$lint/.stamp"
fi

"$lint/bin/hadolint" docker/*/Dockerfile
# The stack's own scripts: `sh` and nothing more, because one of them runs in busybox.
"$lint/bin/shellcheck" --shell=sh docker/*.sh docker/agent/*.sh compose/collector/*.sh compose/demo/*.sh demo/*.sh tests/stack/*.sh
"$lint/bin/yamllint" --strict compose.yaml compose docker victoriametrics grafana/provisioning tests/stack/*.yaml .yamllint.yaml

if docker compose version >/dev/null 2>&1; then
    for overlay in '' compose/packages.yaml compose/least-privilege.yaml "compose/packages.yaml compose/least-privilege.yaml" \
        compose/fleet/member.yaml compose/fleet/central.yaml; do
        set -- -f compose.yaml
        for file in $overlay; do
            [ -e "$file" ] && set -- "$@" -f "$file"
        done
        warnings=$(docker compose --env-file /dev/null "$@" config -q 2>&1) || {
            echo "lint: compose refuses $*: $warnings" >&2
            exit 1
        }
        [ -z "$warnings" ] || {
            echo "lint: compose warns about $*: $warnings" >&2
            exit 1
        }
    done
    sed 's/^#\([A-Z_]*=.\)/\1/' .env.example >.venv/lint/env # all defaults, written out
    docker compose --env-file .venv/lint/env config -q
fi
echo "lint: the stack's files are clean"
