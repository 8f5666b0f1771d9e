#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# RabbitMQ of compose/demo.yaml: a new one each time, which lets its guest in from its network.
set -eu

printf 'listeners.tcp.default = 5672\nloopback_users = none\ndisk_free_limit.absolute = 50MB\n' >/tmp/rabbit.conf
printf '[].\n' >/tmp/plugins
export HOME=/tmp RABBITMQ_MNESIA_BASE=/tmp/data RABBITMQ_LOG_BASE=/tmp/log RABBITMQ_LOGS=- \
    RABBITMQ_CONFIG_FILE=/tmp/rabbit.conf RABBITMQ_ENABLED_PLUGINS_FILE=/tmp/plugins \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+S 1:1 +sbwt none'
exec /usr/lib/rabbitmq/bin/rabbitmq-server
