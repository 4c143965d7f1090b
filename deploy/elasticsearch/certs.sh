#!/usr/bin/env bash
# An authority, and a certificate for Elasticsearch, into a folder; what is there stays. Runs in the image of Elasticsearch.
#
#   certs.sh FOLDER
set -euo pipefail
cd "$1"
umask 077
if [ ! -e elasticsearch/elasticsearch.key ]; then
    tool=/usr/share/elasticsearch/bin/elasticsearch-certutil
    rm -rf ca ca.zip elasticsearch certs.zip
    "$tool" ca --silent --pem --days 3650 --out "$PWD/ca.zip"
    unzip -q ca.zip
    "$tool" cert --silent --pem --days 3650 --name elasticsearch --dns elasticsearch --dns localhost --ip 127.0.0.1 \
        --ca-cert ca/ca.crt --ca-key ca/ca.key --out "$PWD/certs.zip"
    unzip -q certs.zip
    # Nobody signs another one: to have new ones made, empty this folder.
    rm -f ca.zip certs.zip ca/ca.key
fi
