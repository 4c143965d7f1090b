# One file for all images: docker build --target producer|worker|worker-python|collector|cli .
# The build needs the package registries; nothing else is fetched, and the images hold the programs alone.

FROM rust:1.95-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Symbols stay, for the backtraces of panics; the line tables are for machines where people debug.
ENV CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=debuginfo CARGO_INCREMENTAL=0

# Dependencies are a layer of their own: they are built again when a manifest changes, not when the code does.
COPY Cargo.toml Cargo.lock ./
COPY bench/Cargo.toml bench/
COPY cli/Cargo.toml cli/
COPY crates/millpond/Cargo.toml crates/millpond/
COPY services/collector/Cargo.toml services/collector/
COPY services/producer/Cargo.toml services/producer/
COPY services/worker/Cargo.toml services/worker/
RUN mkdir tests && echo 'fn main() {}' >tests/main.rs \
    && for dir in bench cli crates/millpond services/collector services/producer services/worker; do \
         mkdir -p "$dir/src" && : >"$dir/src/lib.rs" && echo 'fn main() {}' >"$dir/src/main.rs"; \
       done \
    && cargo build --release --locked -p millpond-cli -p millpond-producer -p millpond-worker -p millpond-collector \
    && rm -rf crates/*/src services/*/src target/release/millpond* \
         target/release/deps/*millpond* target/release/.fingerprint/millpond*

# `bench` and `tests` are not built here: what stands in for them stays.
COPY crates crates
COPY deploy/nats deploy/nats
COPY services services
RUN cargo build --release --locked -p millpond-cli -p millpond-producer -p millpond-worker -p millpond-collector \
    && mkdir -p /out/bin /out/var/secrets/nats /out/var/secrets/setup /out/var/secrets/producer /out/var/secrets/worker \
         /out/var/secrets/collector /out/var/secrets/cli /out/var/secrets/postgres /out/var/secrets/elasticsearch \
         /out/var/secrets/elk-setup /out/var/secrets/logstash /out/var/secrets/otel-collector /out/var/secrets/kibana \
         /out/var/secrets/grafana /out/var/pipeline/certs /out/var/pipeline/elasticsearch /out/var/pipeline/logstash \
         /out/var/pipeline/otel-collector /out/var/pipeline/kibana /out/var/pipeline/prometheus /out/var/pipeline/grafana \
         /out/var/nats /out/var/nats-2 /out/var/nats-3 /out/var/data \
    && cp target/release/millpond target/release/millpond-producer target/release/millpond-worker \
         target/release/millpond-collector /out/bin/

# What the service images have in common: no shell, no package manager, and a user who is not root. A volume that is
# mounted below /var/lib/millpond becomes this user's.
FROM gcr.io/distroless/cc-debian12:nonroot AS base
ARG VERSION=0.1.0
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.source="https://github.com/millpond/millpond" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="millpond"
COPY --from=build --chown=65532:65532 /out/var/data /var/lib/millpond/data
USER 65532:65532
WORKDIR /var/lib/millpond/data

FROM base AS producer
LABEL org.opencontainers.image.title="millpond-producer" \
      org.opencontainers.image.description="Tasks and jobs over HTTP, for programs that do not speak NATS"
COPY --from=build /out/bin/millpond-producer /usr/local/bin/
ENV MILLPOND_PRODUCER_LISTEN=0.0.0.0:7610
EXPOSE 7610
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["millpond-producer", "health"]
ENTRYPOINT ["millpond-producer"]

FROM base AS collector
LABEL org.opencontainers.image.title="millpond-collector" \
      org.opencontainers.image.description="Keeps what ended, serves it over HTTP, and the console"
COPY --from=build /out/bin/millpond-collector /usr/local/bin/
ENV MILLPOND_COLLECTOR_LISTEN=0.0.0.0:7611 \
    MILLPOND_COLLECTOR_STORE=/var/lib/millpond/data/store.sqlite
EXPOSE 7611
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["millpond-collector", "health"]
ENTRYPOINT ["millpond-collector"]

FROM base AS worker
LABEL org.opencontainers.image.title="millpond-worker" \
      org.opencontainers.image.description="Takes tasks, runs their handlers, and settles them"
COPY --from=build /out/bin/millpond-worker /usr/local/bin/
ENV MILLPOND_WORKER_LISTEN=0.0.0.0:7612 \
    MILLPOND_WORKER_SPOOL=/var/lib/millpond/data
EXPOSE 7612
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["millpond-worker", "health"]
ENTRYPOINT ["millpond-worker"]

# For handlers in Python: two lines make an image of yours (docs/containers.md).
FROM python:3.11-slim-bookworm AS worker-python
ARG VERSION=0.1.0
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.source="https://github.com/millpond/millpond" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="millpond" \
      org.opencontainers.image.title="millpond-worker-python" \
      org.opencontainers.image.description="A worker beside Python, for handlers of yours in /handlers"
COPY --from=build --chown=65532:65532 /out/var/data /var/lib/millpond/data
COPY --from=build /out/bin/millpond-worker /usr/local/bin/
ENV MILLPOND_WORKER_LISTEN=0.0.0.0:7612 \
    MILLPOND_WORKER_SPOOL=/var/lib/millpond/data \
    MILLPOND_WORKER_HANDLERS=/handlers/handlers.toml \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN mkdir /handlers && echo '# A table for each kind: docs/handlers.md.' >/handlers/handlers.toml
USER 65532:65532
WORKDIR /handlers
EXPOSE 7612
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["millpond-worker", "health"]
ENTRYPOINT ["millpond-worker"]

FROM base AS cli
LABEL org.opencontainers.image.title="millpond" \
      org.opencontainers.image.description="The command line, and what sets a cluster up"
COPY --from=build --chown=65532:65532 /out/var /var/lib/millpond
COPY --from=build /out/bin/millpond /usr/local/bin/
ENV MILLPOND_STATE=/var/lib/millpond/secrets/cli
ENTRYPOINT ["millpond"]
