#!/usr/bin/env bash
# Licences, sources and versions of the dependencies (deny.toml), and how many a publisher has (publisher.sh); advisories where
# their database can be had.
#
#   tests/dependencies.sh
set -euo pipefail
cd "$(dirname "$0")/.."
deny=target/tools/bin/cargo-deny
[ -x "$deny" ] || env -u RUSTC_WORKSPACE_WRAPPER CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --debug --locked --root target/tools \
    --target-dir target/cargo-deny cargo-deny@0.20.2
"$deny" check licenses sources bans
tests/publisher.sh count
if "$deny" fetch db; then
    "$deny" check --disable-fetch advisories
else
    echo "advisories: NOT checked, their database cannot be had here"
fi
