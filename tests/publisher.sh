#!/usr/bin/env bash
# What a program that publishes and waits costs: the crates that it compiles, and the seconds of CPU to compile it from nothing.
#
#   tests/publisher.sh count    # the crates alone, nothing is compiled (a part of tests/dependencies.sh)
#   tests/publisher.sh          # compiles as well, and no warning is allowed (a part of tests/long.sh)
set -euo pipefail
cd "$(dirname "$0")/.."
crates_max=160
cpu_seconds_max=95
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cp crates/millpond/examples/wait.rs "$dir/src/main.rs"
# The versions of the workspace.
cp Cargo.lock "$dir/"
cat >"$dir/Cargo.toml" <<TOML
[package]
name = "publisher"
version = "0.1.0"
edition = "2024"

[dependencies]
millpond = { path = "$PWD/crates/millpond" }
tokio = { version = "1", features = ["macros", "rt-multi-thread"] }

[workspace]
TOML
unset RUSTC_WORKSPACE_WRAPPER CLIPPY_ARGS
crates=$(cargo tree --quiet --manifest-path "$dir/Cargo.toml" -e normal --prefix none | sort -u | wc -l)
echo "a publisher has $crates crates, at most $crates_max"
((crates <= crates_max))
[ "${1-}" = count ] && exit
TIMEFORMAT='%U %S'
{ time RUSTFLAGS="-D warnings" cargo build --quiet --manifest-path "$dir/Cargo.toml" --target-dir "$dir/target" 2>&1; } 2>"$dir/seconds"
cpu=$(awk '{ printf "%.0f", $1 + $2 }' "$dir/seconds")
echo "compiled from nothing in $cpu s of CPU, at most $cpu_seconds_max"
((cpu <= cpu_seconds_max))
