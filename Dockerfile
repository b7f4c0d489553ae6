# One binary in two images: with CUDA's libraries, which is what `docker build` makes by itself, and slim. With --gpus, the first
# computes on NVIDIA GPUs; that code has not run on a GPU yet (docs/gpus.md). Else both compute on the CPU.
#
#     docker build -t nexus-ecs-service .                    # CUDA's libraries
#     docker build -t nexus-ecs-service:cpu --target cpu .   # slim
#
#     docker run --gpus all -p 8000:8000 -e AWS_REGION -e MODEL_BUCKET nexus-ecs-service
#     docker run -p 8000:8000 -e NEXUS_BUILTIN=on nexus-ecs-service:cpu
#
# Models, kernels and embeddings are kept in /var/cache/nexus: mount a volume there, and a restart loads from disk.

# Debian 12 has glibc 2.36, which both images below have or surpass: the binary opens everything but libc at run time.
FROM rust:1.95.0-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY models models
# The folders of the cache mounts are not there in later steps; so the binary is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --package nexus --bin nexus \
    && install -D target/release/nexus /out/nexus

FROM debian:bookworm-slim AS cpu
# curl: container definitions call it in their health checks. ca-certificates: S3, DynamoDB and model hubs speak TLS.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/cache/nexus --shell /usr/sbin/nologin nexus \
    && install -d -o nexus -g nexus /var/cache/nexus
COPY LICENSE NOTICE /usr/share/doc/nexus/
COPY --from=build /out/nexus /usr/local/bin/nexus
ENV NEXUS_HOST=0.0.0.0 NEXUS_PORT=8000 NEXUS_BUILTIN=off NEXUS_CACHE_DIR=/var/cache/nexus
USER 10001:10001
VOLUME /var/cache/nexus
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["nexus", "health"]
ENTRYPOINT ["nexus"]
CMD ["serve"]
LABEL org.opencontainers.image.title="Nexus" \
      org.opencontainers.image.description="Inference service for compliance control mapping: embed, retrieve, rerank" \
      org.opencontainers.image.licenses="Apache-2.0"

# `runtime` is the smallest of NVIDIA's images that has NVRTC (it compiles kernels at start, for the GPU that is there) and
# cuBLASLt (it multiplies matrices); `base` has neither. The driver's library comes from the host (--gpus). 12.8 asks for driver
# 570 or newer.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/cache/nexus --shell /usr/sbin/nologin nexus \
    && install -d -o nexus -g nexus /var/cache/nexus
COPY LICENSE NOTICE /usr/share/doc/nexus/
COPY --from=build /out/nexus /usr/local/bin/nexus
# The user's home is the cache folder, so that what the driver compiles is kept there, too.
ENV NEXUS_HOST=0.0.0.0 NEXUS_PORT=8000 NEXUS_BUILTIN=off NEXUS_CACHE_DIR=/var/cache/nexus \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME /var/cache/nexus
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["nexus", "health"]
ENTRYPOINT ["nexus"]
CMD ["serve"]
LABEL org.opencontainers.image.title="Nexus" \
      org.opencontainers.image.description="Inference service for compliance control mapping: embed, retrieve, rerank" \
      org.opencontainers.image.licenses="Apache-2.0"
