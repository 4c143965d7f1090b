#!/usr/bin/env bash
# Becomes an Elasticsearch on 127.0.0.1, of what tests/elk.sh has built; its data in a new folder.
#
#   start.sh ENGINE FOLDER PORT
set -euo pipefail
cp -r "$1/home" "$2"
exec java -Xms512m -Xmx512m -XX:+UseSerialGC -Dlog4j2.disable.jmx=true -Des.nativelibs.path="$1/native" \
    -cp "$1/libraries/*:$1/classes" Main "$2" "$3"
