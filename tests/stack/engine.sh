#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A Docker engine with compose and buildx for the stack's tests, on Debian 12 or newer.
#
#   engine.sh install           installs what is missing; does nothing when all is there
#   engine.sh start [OPTION..]  the same, makes / a shared mount where it is not, then starts dockerd (with
#                               these options) unless one answers
#   engine.sh stop              stops the one that `start` started, no other
#
# Debian 12's own engine (20.10) knows too little (no CAP_BPF), so there Debian 13's is installed, which brings
# a newer libc along: call it after everything else that comes from Debian 12 was installed. Only the lists
# of a private directory name Debian 13; the machine's own apt stays as it is. KERNOB_LANE_MIRROR names a
# mirror where the machine's apt has none (tests/lanes/debian.py).
set -eu
cd "$(dirname "$0")/../.."

packages='docker.io docker-cli docker-compose docker-buildx iptables'
state=${XDG_RUNTIME_DIR:-/run}/kernob-engine
log=/var/log/kernob-engine.log
wait_s=90

say() { echo "engine: $*"; }
fail() {
    echo "engine: $*" >&2
    exit 3
}
answers() { docker info >/dev/null 2>&1; }
need_root() { [ "$(id -u)" = 0 ] || fail "not root: cannot $1"; }

# Whatever the origin of the engine and its clients: what counts is that they are there, and new enough.
is_complete() {
    command -v dockerd >/dev/null && command -v iptables >/dev/null &&
        docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 &&
        dockerd --version | awk '{ sub(/[.].*/, "", $3); exit !($3 >= 23) }'
}

install() {
    if is_complete; then
        return
    fi
    need_root "install $packages"
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    export DEBIAN_FRONTEND=noninteractive
    case $codename in
        bookworm) install_from_trixie ;;
        *)
            say "installing $packages"
            apt-get update -qq
            # shellcheck disable=SC2086  # a list of words, here and below
            apt-get install -y -qq --no-install-recommends $packages
            ;;
    esac
    is_complete || fail "installed $packages, but dockerd, docker compose or docker buildx does not run"
}

install_from_trixie() {
    apt=$(mktemp -d)
    trap 'rm -rf "$apt"' EXIT
    mkdir -p "$apt/lists/partial" "$apt/parts" "$apt/preferences"
    cp -r /etc/apt/sources.list.d/. "$apt/parts/" 2>/dev/null || true
    cp /etc/apt/sources.list "$apt/sources.list" 2>/dev/null || : >"$apt/sources.list"
    cp -r /etc/apt/preferences.d/. "$apt/preferences/" 2>/dev/null || true
    python3 -c 'from tests.lanes.debian import find_mirrors; print(find_mirrors().sources("trixie"), end="")' \
        >"$apt/parts/kernob-trixie.list"
    for suite in trixie trixie-security; do
        printf 'Package: *\nPin: release n=%s\nPin-Priority: 100\n\n' "$suite"
    done >"$apt/preferences/kernob-trixie"
    set -- -q -o "Dir::Etc::sourcelist=$apt/sources.list" -o "Dir::Etc::sourceparts=$apt/parts" \
        -o "Dir::Etc::preferencesparts=$apt/preferences" -o "Dir::State::lists=$apt/lists" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=5
    say "fetching Debian 13's package lists"
    apt-get "$@" update >"$apt/update.log" 2>&1 || {
        cat "$apt/update.log" >&2
        fail "Debian 13's package lists could not be fetched"
    }
    set -- "$@" install --no-install-recommends -t trixie
    # shellcheck disable=SC2086
    apt-get "$@" -s $packages >"$apt/plan"
    # The environment stands on this python3; an engine is not worth any package that somebody installed.
    if grep -E '^(Remv|Inst python3(\.[0-9]+)?(-minimal)? )' "$apt/plan" >&2; then
        fail 'that is what installing would remove or replace; install an engine (>= 23) yourself'
    fi
    say "installing $packages from Debian 13, $(grep -c '^Inst' "$apt/plan") packages in all"
    # shellcheck disable=SC2086
    apt-get "$@" -y -o Dpkg::Options::=--force-confold $packages
    rm -rf "$apt"
    trap - EXIT
}

# Containers see what the host mounts only where / is shared, which is systemd's work elsewhere.
share_root() {
    if [ "$(findmnt -n -o PROPAGATION /)" = private ]; then
        say 'making / a shared mount, as systemd does'
        mount --make-rshared /
    fi
}

start() {
    if [ "$(id -u)" = 0 ]; then
        share_root
    fi
    if answers; then
        say "one answers: $(docker version --format '{{.Server.Version}}')"
        return
    fi
    need_root 'start dockerd'
    mkdir -p "$state"
    say "starting dockerd, log $log"
    setsid dockerd "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$state/pid"
    waited=0
    until answers; do
        kill -0 "$pid" 2>/dev/null || fail "dockerd ended: $(tail -n 1 "$log")"
        [ "$waited" -lt "$wait_s" ] || fail "dockerd does not answer after $wait_s s: $(tail -n 1 "$log")"
        sleep 1
        waited=$((waited + 1))
    done
    say "answers after $waited s: $(docker version --format '{{.Server.Version}}')"
}

stop() {
    [ -f "$state/pid" ] || return 0
    pid=$(cat "$state/pid")
    # The number may by now be another process's.
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
        say "stopping dockerd ($pid)"
        kill "$pid"
        while [ -d "/proc/$pid" ] && [ "$(awk '{ print $3 }' "/proc/$pid/stat" 2>/dev/null)" != Z ]; do
            sleep 0.2
        done
    fi
    rm -rf "$state"
}

case ${1:-} in
    install) install ;;
    start)
        shift
        install
        start "$@"
        ;;
    stop) stop ;;
    *) fail "'${1:-}' is none of install, start, stop" ;;
esac
