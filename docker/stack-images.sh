#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the stack's images from packages, for machines that reach no image registry:
#
#   kernob/base:packages             Debian, from the mirror that this machine's apt uses
#   kernob/agent:packages            Kernob on BCC
#   kernob/collector:packages        the OpenTelemetry Collector, compiled from Go modules
#   kernob/victoriametrics:packages  VictoriaMetrics, vmalert and vmalert-tool from Debian sid
#   kernob/demo:packages             what the demo runs in containers; only where STACK_IMAGES names it
#   kernob/demo-servers:packages     the servers of compose/demo.yaml; likewise
#
# Run again it does nothing for what is built and unchanged. STACK_IMAGES="base agent" builds only those.
# Needs root, mmdebstrap, go (1.25 or newer), docker with buildx. Nothing of this machine (mirror, proxy,
# certificates) stays in an image; KERNOB_BUILD_CA names other authorities than the system's.
# shellcheck disable=SC2016  # what stands in single quotes is expanded by apt, or by a shell further in
set -eu

cd "$(dirname "$0")/.."
suite=trixie
tag=packages
work=${KERNOB_BUILD_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/kernob/images}
ca=${KERNOB_BUILD_CA:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
unused='--dpkgopt=path-exclude=/usr/share/doc/* --dpkgopt=path-exclude=/usr/share/man/*
    --dpkgopt=path-exclude=/usr/share/locale/* --dpkgopt=path-exclude=/usr/share/info/*'

say() { echo "stack-images: $*"; }
fail() {
    echo "stack-images: $*" >&2
    exit 3
}
need() { command -v "$1" >/dev/null 2>&1 || fail "'$1' is missing; install $2"; }

quietly() { # what, command...: its output only when it fails
    what=$1
    shift
    "$@" >"$work/$what.log" 2>&1 && return 0
    tail -n 20 "$work/$what.log" >&2
    fail "$what failed, see above; all of it is in $work/$what.log"
}

# ---- Debian ------------------------------------------------------------------------------------
find_mirror() { # the archive this machine's apt takes Debian from
    apt-get indextargets --format '$(REPO_URI)|$(LABEL)' 'Created-By: Packages' 2>/dev/null |
        awk -F '|' '$2 == "Debian" || ($2 == "" && $1 ~ /\/debian\/?$/) { print $1; exit }'
}

write_apt_settings() { # proxies and certificates of this machine's apt
    apt-config dump Acquire | grep -E '^Acquire::(https?::|Retries|ForceIPv[46])' | grep -v '"";$' || true
    echo 'Acquire::Check-Valid-Until "false";'
    echo 'Acquire::Languages "none";'
}

# ---- what is built, from what ------------------------------------------------------------------
inputs() { # image: everything that decides what is in it
    case $1 in
    base) echo "$suite $unused" && recipe_text build_base ;;
    agent)
        image_id base
        find bpf kernob docker/agent LICENSES -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 cat
        cat pyproject.toml requirements.lock LICENSE README.md
        ;;
    collector) image_id base && cat docker/collector/*.go docker/collector/go.* docker/collector/Dockerfile ;;
    victoriametrics) image_id base && cat docker/victoriametrics/* && recipe_text build_victoriametrics ;;
    demo | demo-servers) image_id base && cat docker/demo/Dockerfile docker/agent/apt.sh ;;
    esac
}

recipe_text() { sed -n "/^$1()/,/^}/p" docker/stack-images.sh; }
image_id() { docker image inspect --format '{{.Id}}' "kernob/$1:$tag" 2>/dev/null || true; }
recipe_of() { docker image inspect --format '{{index .Config.Labels "kernob.recipe"}}' "kernob/$1:$tag" 2>/dev/null || true; }

build() { # image
    recipe=$(inputs "$1" | sha256sum | cut -c 1-16)
    if [ "$(recipe_of "$1")" = "$recipe" ]; then
        say "kernob/$1:$tag is up to date"
        return 0
    fi
    started=$(date +%s)
    "build_$(echo "$1" | tr - _)"
    say "kernob/$1:$tag built in $(($(date +%s) - started)) s, $(docker image inspect --format '{{.Size}}' "kernob/$1:$tag" | awk '{ printf "%d MB", $1 / 1e6 }')"
}

buildx() { # image, context, arguments...
    image=$1 context=$2
    shift 2
    quietly "$image" docker buildx build --progress=plain --load --build-arg "BASE=kernob/base:$tag" \
        --file "docker/${image%-servers}/Dockerfile" --label "kernob.recipe=$recipe" --tag "kernob/$image:$tag" "$@" "$context"
}

build_base() {
    need mmdebstrap 'mmdebstrap'
    say "kernob/base:$tag: Debian $suite"
    rm -f "$work/base.tar"
    # shellcheck disable=SC2086  # a list of words without blanks in them
    quietly base mmdebstrap --variant=minbase --mode=root --aptopt="$work/apt.conf" $unused \
        --include=busybox,ca-certificates \
        --customize-hook='ln -s usr/bin/busybox "$1/busybox"' \
        --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/etc/apt/apt.conf.d/99mmdebstrap"' \
        --customize-hook='echo "deb http://deb.debian.org/debian '$suite' main" >"$1/etc/apt/sources.list"' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
        "$suite" "$work/base.tar" "$mirror"
    quietly import docker import --change 'CMD ["/bin/sh"]' --change "LABEL kernob.recipe=$recipe" \
        "$work/base.tar" "kernob/base:$tag"
    rm -f "$work/base.tar"
}

build_demo() {
    say "kernob/demo:$tag: Redis and Python from Debian"
    build_demo_target demo programs
}

build_demo_servers() {
    say "kernob/demo-servers:$tag: nginx, PostgreSQL, Redis, RabbitMQ and Python from Debian"
    build_demo_target demo-servers servers
}

build_demo_target() { # image, target
    echo "$mirror" >"$work/mirror"
    name=$1
    set -- --target "$2" --secret "id=apt,src=$work/apt.conf" --secret "id=mirror,src=$work/mirror"
    [ ! -s "$ca" ] || set -- "$@" --secret "id=ca,src=$ca"
    buildx "$name" . "$@"
}

build_agent() {
    say "kernob/agent:$tag: BCC from Debian, Python packages from requirements.lock"
    echo "$mirror" >"$work/mirror"
    set -- --secret "id=apt,src=$work/apt.conf" --secret "id=mirror,src=$work/mirror"
    [ ! -s "$ca" ] || set -- "$@" --secret "id=ca,src=$ca"
    write_pip_settings >"$work/pip.conf"
    [ ! -s "$work/pip.conf" ] || set -- "$@" --secret "id=pip,src=$work/pip.conf"
    buildx agent . "$@"
    rm -f "$work/pip.conf"
}

write_pip_settings() { # an index that this machine's environment names, for the build only
    [ -n "${PIP_INDEX_URL:-}${HTTPS_PROXY:-}${https_proxy:-}" ] || return 0
    echo '[global]'
    [ -z "${PIP_INDEX_URL:-}" ] || echo "index-url = $PIP_INDEX_URL"
    proxy=${HTTPS_PROXY:-${https_proxy:-}}
    [ -z "$proxy" ] || echo "proxy = $proxy"
}

build_collector() {
    need go 'Go 1.25 or newer (https://go.dev/dl)'
    say "kernob/collector:$tag: compiling (four minutes on two cores the first time)"
    mkdir -p "$work/collector"
    quietly compile sh -c 'cd docker/collector && CGO_ENABLED=0 exec go build -mod=readonly -trimpath \
        -ldflags="-s -w" -o "$1" .' sh "$work/collector/kernob-collector"
    buildx collector "$work/collector"
}

build_victoriametrics() {
    say "kernob/victoriametrics:$tag: from Debian sid's package"
    rm -rf "$work/victoriametrics" "$work/sid"
    mkdir -p "$work/victoriametrics" "$work/sid/lists/partial" "$work/sid/cache/archives/partial"
    keyring=
    for file in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
        [ ! -e "$file" ] || keyring=$file
    done
    [ -n "$keyring" ] || fail "no Debian archive keyring; install debian-archive-keyring"
    echo "deb [signed-by=$keyring] $mirror sid main" >"$work/sid/sources.list"
    : >"$work/sid/status"
    {
        cat "$work/apt.conf"
        # An apt of its own, so that sid never reaches this machine's.
        echo "Dir::Etc::sourcelist \"$work/sid/sources.list\"; Dir::Etc::sourceparts \"-\";"
        echo 'Dir::Etc::preferences "-"; Dir::Etc::preferencesparts "-"; APT::Sandbox::User "root";'
        echo "Dir::State \"$work/sid\"; Dir::State::status \"$work/sid/status\"; Dir::Cache \"$work/sid/cache\";"
    } >"$work/sid/apt.conf"
    quietly sid-lists env APT_CONFIG="$work/sid/apt.conf" apt-get update -q
    quietly sid-package sh -c 'cd "$1" && APT_CONFIG="$2" exec apt-get download -q victoria-metrics' \
        sh "$work/victoriametrics" "$work/sid/apt.conf"
    package=$(find "$work/victoriametrics" -name 'victoria-metrics_*.deb')
    found=$(dpkg-deb --field "$package" Version)
    # Older ones drop exponential histograms, or name OpenTelemetry's metrics otherwise.
    dpkg --compare-versions "$found" ge 1.145 || fail "Debian sid has VictoriaMetrics $found, needed is 1.145 or newer"
    dpkg-deb --extract "$package" "$work/victoriametrics"
    rm "$package"
    buildx victoriametrics "$work/victoriametrics" --build-arg "VERSION=$found"
}

# ------------------------------------------------------------------------------------------------
need docker 'docker.io and docker-buildx'
need apt-get 'nothing: this needs Debian or Ubuntu'
docker buildx version >/dev/null 2>&1 || fail "docker has no buildx; install docker-buildx"
docker info >/dev/null 2>&1 || fail "the Docker engine does not answer: is it running, and may this user use it?"
[ "$(id -u)" = 0 ] || fail "must run as root (mmdebstrap builds a root file system)"
mkdir -p "$work"
exec 9>"$work/lock"
flock 9
mirror=${DEBIAN_MIRROR:-$(find_mirror)}
[ -n "$mirror" ] || fail "this machine's apt has no Debian mirror; name one in DEBIAN_MIRROR"
write_apt_settings >"$work/apt.conf"
for image in ${STACK_IMAGES:-base agent collector victoriametrics}; do
    case $image in
    base | agent | collector | victoriametrics | demo | demo-servers) build "$image" ;;
    *) fail "STACK_IMAGES: '$image' is none of base, agent, collector, victoriametrics, demo, demo-servers" ;;
    esac
done
