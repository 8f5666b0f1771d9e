#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A mailer that fails before its logger has flushed: `mailer.sh crashes|runs`.
case $1 in
crashes)
    sleep 0.1
    exit 3
    ;;
*) exec sleep 100000 ;;
esac
