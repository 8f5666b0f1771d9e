#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the servers and client libraries that tests/kernel/test_tcp_servers.py runs, and what other kernel tests
# need: a packet filter, supervisors, strace, musl. Says what it installs, does nothing when all is there, and has none of
# them started or enabled: the tests start their own.
set -eu

packages='nginx-light haproxy redis-server redis-tools rabbitmq-server postgresql postgresql-client curl openssl
iproute2 nftables supervisor runit strace musl-tools
python3-redis python3-psycopg2 python3-pika python3-aiohttp'
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
    echo "servers: not root; install these yourself:$missing" >&2
    exit 3
fi
echo "servers: installing$missing"
# Packages ask this file whether they may start what they bring.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
apt-get install -y -qq --no-install-recommends $missing
if [ -d /run/systemd/system ]; then
    systemctl --quiet disable nginx haproxy redis-server rabbitmq-server postgresql supervisor || true
fi
