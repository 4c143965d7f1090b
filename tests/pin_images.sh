#!/usr/bin/env bash
# deploy/pin-images.sh against a registry on this machine: it pins what has no digest, leaves what is right, renews what has
# changed, and says what it cannot reach. Needs a Docker engine with buildx (tests/containers/engine.sh) and Debian's
# package docker-registry. Traffic stays on loopback.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/steps.sh

work=$(mktemp -d)
read -r port < <(free_ports 1)
image=localhost:$port/base:1
cleanup() {
    local code=$?
    [ -z "${registry:-}" ] || kill "$registry" 2>/dev/null || true
    docker image rm --force "$image" >/dev/null 2>&1 || true
    rm -rf "$work"
    exit "$code"
}
trap cleanup EXIT

printf '%s\n' 'version: 0.1' 'log: { level: error }' "storage: { filesystem: { rootdirectory: $work/registry } }" \
    "http: { addr: 127.0.0.1:$port }" >"$work/registry.yml"
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
until_true "the registry answers" 20 python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$port/v2/')"

push() { # push TEXT: an image that holds it
    mkdir -p "$work/image" && echo "$1" >"$work/image/text"
    tar -C "$work/image" -c . | docker import - "$image" >/dev/null
    docker push --quiet "$image" >/dev/null
}
printf 'ARG RUST_IMAGE=%s\nFROM ${RUST_IMAGE}\n' "$image" >"$work/Dockerfile"
printf 'services:\n  nats:\n    image: %s\n  ours:\n    image: millpond/cli:${VERSION}\n' "$image" >"$work/compose.yml"
pin() { deploy/pin-images.sh "$@" "$work/Dockerfile" "$work/compose.yml"; }

push one
pin --check >"$work/said" 2>&1 && fail "--check takes what has no digest"
grep -q "2 images are not pinned" "$work/said" || fail "--check says: $(cat "$work/said")"
pin >/dev/null
first=$(sed -n 's/^ARG RUST_IMAGE=.*@//p' "$work/Dockerfile")
[[ $first =~ ^sha256:[0-9a-f]{64}$ ]] || fail "no digest in $(cat "$work/Dockerfile")"
is "the compose file has the same" "    image: $image@$first" "$(grep base "$work/compose.yml")"
is "what is ours is left alone" 1 "$(grep -c 'millpond/cli:${VERSION}$' "$work/compose.yml")"
is "what is right is left alone" "" "$(pin)"
pin --check
push two
pin --check >/dev/null 2>&1 && fail "--check takes an old digest"
pin >/dev/null
second=$(sed -n 's/^ARG RUST_IMAGE=.*@//p' "$work/Dockerfile")
[[ $second =~ ^sha256:[0-9a-f]{64}$ && $second != "$first" ]] || fail "the digest was not renewed: $second"
docker pull --quiet "$image@$second" >/dev/null || fail "the digest is of no image"
kill "$registry" && wait "$registry" 2>/dev/null || true
pin >"$work/said" 2>&1 && fail "without a registry it should fail"
grep -q "does not answer" "$work/said" || fail "without a registry it says: $(cat "$work/said")"
step "pin_images.sh: all of it is as it should be"
