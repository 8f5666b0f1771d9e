# SPDX-License-Identifier: Apache-2.0
# What the Collector's container starts: `/busybox sh start.sh PROGRAM ARGUMENT...`.
# Says the host's name, which the container shares but no variable holds, and adds the second backend's
# configuration where one is set. PROGRAM takes this shell's place, so it gets the signals.
set -eu

program=$1
shift
HOST_NAME=$(/busybox cat /proc/sys/kernel/hostname)
export HOST_NAME

if [ -n "${SECOND_ENDPOINT:-}" ]; then
    case ${SECOND_PROTOCOL:-grpc} in
    grpc | http) set -- "$@" "--config=/etc/kernob/second-${SECOND_PROTOCOL:-grpc}.yaml" ;;
    *)
        echo "kernob-collector: KERNOB_SECOND_PROTOCOL is '$SECOND_PROTOCOL': must be grpc or http" >&2
        exit 2
        ;;
    esac
    if [ -n "${SECOND_HEADERS:-}" ]; then
        # name=value,name=value as OpenTelemetry writes them, as the YAML the Collector reads.
        case $SECOND_HEADERS in
        *[\"\\]*) echo "kernob-collector: KERNOB_SECOND_HEADERS must not contain quotes or backslashes" >&2 && exit 2 ;;
        esac
        yaml=
        rest=$SECOND_HEADERS,
        while [ -n "$rest" ]; do
            pair=${rest%%,*}
            rest=${rest#*,}
            case $pair in
            "") continue ;;
            [!=]*=*) yaml="$yaml\"${pair%%=*}\": \"${pair#*=}\", " ;;
            *) echo "kernob-collector: KERNOB_SECOND_HEADERS must be name=value,name=value" >&2 && exit 2 ;;
            esac
        done
        SECOND_HEADERS_YAML="{$yaml}"
    fi
fi
# A dollar sign would start a variable of the Collector's.
SECOND_HEADERS_YAML=$(echo "${SECOND_HEADERS_YAML:-{\}}" | /busybox sed 's/\$/$$/g')
export SECOND_HEADERS_YAML

exec "$program" "$@"
