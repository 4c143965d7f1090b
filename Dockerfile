# One file for all images: docker build --target producer|worker|worker-python|collector|cli .
# The build needs the package registries; nothing else is fetched. Each image holds the one program `millpond`, which is a
# service when it is called by the service's name, and nothing beside it.
# deploy/pin-images.sh writes the digests of today behind these tags.

ARG RUST_IMAGE=rust:1.95-slim-trixie
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13:nonroot
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${RUST_IMAGE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
# The cargo profile: `release`, or one that builds faster and runs slower.
ARG PROFILE=release
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY bench bench
COPY cli cli
COPY crates crates
COPY deploy/nats deploy/nats
# `explain` prints its sections.
COPY docs/operate.md docs/operate.md
COPY services services
# The caches survive any edit, so that only what has changed is built again. The integration tests are not built here:
# an empty file stands in for them.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    mkdir -p tests /out/bin /out/data && : >tests/main.rs \
    && if [ "$PROFILE" = release ]; then features=--features=jemalloc; fi \
    && CARGO_INCREMENTAL=0 cargo build --profile "$PROFILE" ${features:+"$features"} --locked \
    && install -D target/"$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")"/millpond -t /out/bin \
    && for service in producer worker collector; do ln -s millpond "/out/bin/millpond-$service"; done
# The folders that the command line's image has, so that volumes mounted there become its user's.
RUN mkdir -p /out/var/data /out/var/nats /out/var/nats-2 /out/var/nats-3 \
    && for name in nats setup producer worker collector cli postgres elasticsearch elk-setup logstash otel-collector kibana grafana; do \
         mkdir -p "/out/var/secrets/$name"; \
       done \
    && for name in certs elasticsearch logstash otel-collector kibana prometheus grafana; do mkdir -p "/out/var/pipeline/$name"; done

# What the service images have in common: no shell, no package manager, and a user who is not root. A volume that is
# mounted below /var/lib/millpond becomes this user's.
FROM ${RUNTIME_IMAGE} AS base
ARG VERSION=0.1.0
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.source="https://github.com/millpond/millpond" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="millpond"
COPY --from=build /out/bin /usr/local/bin/
COPY --from=build --chown=65532:65532 /out/data /var/lib/millpond/data
USER 65532:65532
WORKDIR /var/lib/millpond/data

FROM base AS producer
LABEL org.opencontainers.image.title="millpond-producer" \
      org.opencontainers.image.description="Tasks and jobs over HTTP, for programs that do not speak NATS"
ENV MILLPOND_PRODUCER_LISTEN=0.0.0.0:7610
EXPOSE 7610
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["millpond-producer", "health"]
ENTRYPOINT ["millpond-producer"]

FROM base AS collector
LABEL org.opencontainers.image.title="millpond-collector" \
      org.opencontainers.image.description="Keeps what ended, serves it over HTTP, and the console"
ENV MILLPOND_COLLECTOR_LISTEN=0.0.0.0:7611 \
    MILLPOND_COLLECTOR_STORE=/var/lib/millpond/data/store.sqlite
EXPOSE 7611
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["millpond-collector", "health"]
ENTRYPOINT ["millpond-collector"]

FROM base AS worker
LABEL org.opencontainers.image.title="millpond-worker" \
      org.opencontainers.image.description="Takes tasks, runs their handlers, and settles them"
ENV MILLPOND_WORKER_LISTEN=0.0.0.0:7612 \
    MILLPOND_WORKER_SPOOL=/var/lib/millpond/data
EXPOSE 7612
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["millpond-worker", "health"]
ENTRYPOINT ["millpond-worker"]

# For handlers in Python: two lines make an image of yours (docs/containers.md).
FROM ${PYTHON_IMAGE} AS worker-python
ARG VERSION=0.1.0
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.source="https://github.com/millpond/millpond" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="millpond" \
      org.opencontainers.image.title="millpond-worker-python" \
      org.opencontainers.image.description="A worker beside Python, for handlers of yours in /handlers"
COPY --from=build /out/bin /usr/local/bin/
COPY --from=build --chown=65532:65532 /out/data /var/lib/millpond/data
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
ENV MILLPOND_STATE=/var/lib/millpond/secrets/cli
ENTRYPOINT ["millpond"]
