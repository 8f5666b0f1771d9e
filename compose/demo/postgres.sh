#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PostgreSQL of compose/demo.yaml: a new one each time, which trusts everybody on its network.
set -eu

programs=$(dirname "$(find /usr/lib/postgresql -name initdb)")
"$programs/initdb" -D /tmp/data -A trust -U postgres -N >/dev/null
echo 'host all all all trust' >>/tmp/data/pg_hba.conf
exec "$programs/postgres" -D /tmp/data -k '' -h '*' -c shared_buffers=32MB
