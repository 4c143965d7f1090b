#!/usr/bin/env bash
# Makes what the tests of the images need ahead of them: an engine, and the images in its cache. Where no engine can be had,
# $ENGINE_DIR/none says why, and the script ends with 0.
#
#   tests/containers/images.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENGINE_DIR=${ENGINE_DIR:-/var/tmp/millpond-engine} DOCKER_BUILDKIT=1
mkdir -p "$ENGINE_DIR"
rm -f "$ENGINE_DIR/none"
if ! tests/containers/engine.sh 2>"$ENGINE_DIR/why.log"; then
    mv "$ENGINE_DIR/why.log" "$ENGINE_DIR/none"
    exit
fi
docker build --target cli --build-arg "PROFILE=${MILLPOND_BUILD_PROFILE:-release}" .
