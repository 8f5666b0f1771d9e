#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs packages during an image build and leaves nothing of the how: no lists, caches, docs, mirror.
set -eu

export DEBIAN_FRONTEND=noninteractive
sources=/run/build.list
options="-o Dir::Etc::sourceparts=- -o Dir::Etc::sourcelist=$sources"
if [ -s /run/secrets/mirror ]; then
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    echo "deb $(cat /run/secrets/mirror) $release main" >"$sources"
else
    options=
fi
[ ! -s /run/secrets/ca ] || options="$options -o Acquire::https::CaInfo=/run/secrets/ca"

# shellcheck disable=SC2086  # a list of words
apt-get $options update -qq
# shellcheck disable=SC2086
apt-get $options install -qq -y --no-install-recommends \
    -o Acquire::Retries=5 -o Dpkg::Use-Pty=0 \
    -o DPkg::Options::=--path-exclude='/usr/share/doc/*' \
    -o DPkg::Options::=--path-exclude='/usr/share/man/*' \
    -o DPkg::Options::=--path-exclude='/usr/share/locale/*' "$@" >/dev/null
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old \
    /var/log/apt /var/log/dpkg.log /var/log/alternatives.log "$sources"
