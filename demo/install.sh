#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the servers that the demo runs (Debian, Ubuntu); does nothing when all is there.
#
# None of them is started or left to start at boot: while they are installed a policy-rc.d forbids it, and a
# unit that came with them is disabled. Packages that were there before are not touched.
set -eu

fail() {
    echo "demo: $*" >&2
    exit 3
}
has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

packages=
has nginx || packages="$packages nginx-light"
has redis-server || packages="$packages redis-server"
has rabbitmq-server || packages="$packages rabbitmq-server"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || packages="$packages postgresql"
has ip || packages="$packages iproute2"
has nft || packages="$packages nftables"
has mkfs.ext4 || packages="$packages e2fsprogs"
[ -n "$packages" ] || exit 0

command -v apt-get >/dev/null 2>&1 || fail "missing:$packages; there is no apt-get here, install them yourself"
[ "$(id -u)" = 0 ] || fail "missing:$packages; run this as root"
echo "demo: installing$packages (none of them is started)"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
apt-get install -y -qq --no-install-recommends $packages >/dev/null
if [ -d /run/systemd/system ]; then
    for unit in nginx redis-server rabbitmq-server postgresql epmd; do
        case $packages in
        *"$unit"*) systemctl disable --quiet "$unit" 2>/dev/null || true ;;
        esac
    done
fi
