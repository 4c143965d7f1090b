#!/usr/bin/env bash
# What can be said of deploy/ without the programs that it is for: parsers, references, names, rules, and the Ruby filter run.
# tests/elk.sh runs the pipeline itself. Needs promtool (Debian: prometheus), ruby, python3; docker compose where it is.
#
#   tests/deploy.sh
set -euo pipefail
cd "$(dirname "$0")/.."

promtool check config deploy/prometheus/prometheus.yml
promtool test rules tests/prometheus/alerts_test.yml
python3 tests/deploy_check.py
python3 tests/deploy_setup.py
"${RUBY:-ruby}" tests/elk/filter_test.rb
for script in deploy/elasticsearch/*.sh tests/elk.sh; do bash -n "$script"; done
if docker compose version >/dev/null 2>&1; then
    said=$(docker compose --profile elk --profile metrics config --quiet 2>&1)
    [ -z "$said" ] || { printf 'docker compose config: %s\n' "$said" >&2; exit 1; }
    echo "docker compose: the profiles elk and metrics are clean"
else
    echo "docker compose is not here: docker-compose.yml was not read"
fi
