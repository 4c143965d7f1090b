#!/usr/bin/env bash
# What Elasticsearch and Kibana need once, and may have again: runs in the image of Elasticsearch, or wherever curl is.
#
#   setup.sh templates      index templates, with mappings and retention
#   setup.sh users          roles, users, and the password of Kibana's own user
#   setup.sh objects        data views, searches and dashboards in Kibana
#   setup.sh api-key NAME   prints a key that reads what is stored, for a program, good for 90 days
set -euo pipefail
cd "$(dirname "$0")"

elasticsearch=${ELASTICSEARCH_URL:-https://elasticsearch:9200}
kibana=${KIBANA_URL:-http://kibana:5601}
secrets=${SECRETS:-/run/millpond}
certificate=${CA_FILE:-/run/certs/ca/ca.crt}
objects=${OBJECTS:-/etc/kibana/objects.ndjson}

# Passwords go to curl by a file, where no list of processes shows them. Where there is none, security is off: a test.
request() {
    local settings=/dev/null
    if [ -s "$secrets/elastic_password" ]; then
        settings=$(mktemp)
        printf 'user = "elastic:%s"\ncacert = "%s"\n' "$(cat "$secrets/elastic_password")" "$certificate" >"$settings"
    fi
    local code=0
    curl --silent --show-error --fail-with-body --max-time 60 --config "$settings" "$@" || code=$?
    [ "$settings" = /dev/null ] || rm -f "$settings"
    return "$code"
}
# put METHOD PATH, with the body from standard input
put() { request --request "$1" --header 'Content-Type: application/json' --data-binary @- --output /dev/null "$elasticsearch/$2"; }
# until_answers URL
until_answers() {
    for _ in $(seq 90); do
        if request --output /dev/null "$1" 2>/dev/null; then return; fi
        sleep 2
    done
    echo "setup.sh: no answer from $1" >&2
    exit 1
}
user() { printf '{"password": "%s", "roles": ["%s"]}' "$(cat "$secrets/$2")" "$3" | put PUT "_security/user/$1"; }

# What a reader may.
reads='{"names": ["traces-millpond.otel-*", "logs-millpond.otel-*"], "privileges": ["read", "view_index_metadata"]}'

templates() {
    for file in templates/*.json; do
        put PUT "_index_template/$(basename "$file" .json)" <"$file"
    done
    echo "index templates are in place"
}
users() {
    put PUT _security/role/millpond_writer <<'J'
{"cluster": ["monitor"],
 "indices": [{"names": ["traces-millpond.otel-*", "logs-millpond.otel-*"], "privileges": ["auto_configure", "create_doc"]}]}
J
    put PUT _security/role/millpond_reader <<J
{"indices": [$reads], "applications": [{"application": "kibana-.kibana", "privileges": ["read"], "resources": ["*"]}]}
J
    user millpond_writer writer_password millpond_writer
    user millpond reader_password millpond_reader
    printf '{"password": "%s"}' "$(cat "$secrets/kibana_password")" | put POST _security/user/kibana_system/_password
    echo "roles and users are in place"
}
objects() {
    until_answers "$kibana/api/status"
    answer=$(request --header 'kbn-xsrf: true' --form "file=@$objects" "$kibana/api/saved_objects/_import?overwrite=true")
    case $answer in
    *'"success":true'*) echo "Kibana's objects are in place" ;;
    *)
        printf 'setup.sh: Kibana has refused: %s\n' "$answer" >&2
        exit 1
        ;;
    esac
}
api_key() {
    printf '{"name": "%s", "expiration": "90d", "role_descriptors": {"reader": {"indices": [%s]}}}' "$1" "$reads" |
        request --header 'Content-Type: application/json' --data-binary @- "$elasticsearch/_security/api_key"
}

until_answers "$elasticsearch/_cluster/health"
while [ $# -gt 0 ]; do
    case $1 in
    templates | users | objects) "$1" ;;
    api-key)
        api_key "${2:?a name}"
        shift
        ;;
    *)
        echo "setup.sh: what is $1?" >&2
        exit 2
        ;;
    esac
    shift
done
