#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what the lanes need on the host. Says what it installs; does nothing when all is there.
set -eu

packages='qemu-system-x86 mmdebstrap debian-archive-keyring e2fsprogs git python3 python3-venv'
missing=
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    case $state in
        ii*) ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "lanes: not root; install these yourself:$missing" >&2
    exit 3
fi
echo "lanes: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
apt-get install -y -qq --no-install-recommends $missing
