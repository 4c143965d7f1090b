#!/usr/bin/env bash
# Builds the OpenTelemetry Collector of the tests once, by Go, from a network: FOLDER/otelcol/otelcol.
#
#   tests/elk/otelcol.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")"
version=v0.165.0
here=$PWD
mkdir -p "${1:?FOLDER}"
cd "$1"
[ ! -x otelcol/otelcol ] || exit 0
export GOPATH=$PWD/go GOFLAGS=-modcacherw
[ -x go/bin/builder ] || go install "go.opentelemetry.io/collector/cmd/builder@$version"
nice -n 10 go/bin/builder --config "$here/otelcol-builder.yaml"
