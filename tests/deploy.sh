#!/usr/bin/env bash
# What can be said of deploy/ without the programs that it is for: parsers, references, names, rules, and the Ruby filter run.
# tests/elk.sh runs the pipeline itself. Needs promtool (Debian: prometheus), ruby, python3, npm; docker compose where it is.
#
#   tests/deploy.sh
set -euo pipefail
cd "$(dirname "$0")/.."

promtool check config deploy/prometheus/prometheus.yml
promtool test rules tests/prometheus/alerts_test.yml
python3 tests/deploy_check.py
python3 tests/deploy_setup.py
"${RUBY:-ruby}" tests/elk/filter_test.rb
# Of Logstash's configuration the grammar, of the Grafana dashboard the schema; not that a plugin knows an option.
python3 -m venv target/logstash-parser
target/logstash-parser/bin/pip install --quiet --disable-pip-version-check logstash-pipeline-parser==0.0.3
target/logstash-parser/bin/python -c '
import logstash_pipeline_parser, sys
print("otlp.conf:", *(section[0] for section in logstash_pipeline_parser.Pipeline(open(sys.argv[1]).read()).parse()))
' deploy/logstash/pipeline/otlp.conf
mkdir -p target/grafana-schema
npm install --silent --no-audit --no-fund --prefix target/grafana-schema @grafana/schema@13.2.3 typescript@5.9.3
{
    echo 'import type { Dashboard, FieldColorModeId, ThresholdsMode } from "@grafana/schema";'
    echo 'const board: Dashboard ='
    # Of these two it wants the enumeration, where JSON has its text.
    sed 's/"mode": "thresholds"/& as FieldColorModeId/; s/"mode": "absolute"/& as ThresholdsMode/' deploy/grafana/dashboards/millpond.json
    echo '; export default board;'
} >target/grafana-schema/board.ts
target/grafana-schema/node_modules/.bin/tsc --noEmit --strict --skipLibCheck --module nodenext --moduleResolution nodenext \
    target/grafana-schema/board.ts
echo "the dashboard of Grafana fits its schema"
"${RUBY:-ruby}" -ryaml -e 'ARGV.each { |file| YAML.safe_load_file(file, aliases: true) }' deploy/*/*.y*ml deploy/grafana/provisioning/*/*.yml
for script in deploy/elasticsearch/*.sh tests/elk.sh; do bash -n "$script"; done
if docker compose version >/dev/null 2>&1; then
    said=$(docker compose --profile elk --profile metrics config --quiet 2>&1)
    [ -z "$said" ] || { printf 'docker compose config: %s\n' "$said" >&2; exit 1; }
    echo "docker compose: the profiles elk and metrics are clean"
else
    echo "docker compose is not here: docker-compose.yml was not read"
fi
