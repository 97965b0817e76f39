# docker build --file images/client.Dockerfile --tag sccache-client .
#
# What an image that builds takes: COPY --from=sccache-client / /usr/local/bin/
# Two static programs and nothing else. Files in images/prebuilt/client/ replace compilations.
ARG BUILD_IMAGE=rust:1.95-bookworm

FROM ${BUILD_IMAGE} AS build
ARG SCCACHE_VERSION
ARG SCCACHE_LTO=0
COPY . /src/
RUN /src/images/binaries.sh client /out

FROM scratch
LABEL org.opencontainers.image.title="sccache-dock client" \
      org.opencontainers.image.description="sccache and sccache-dock for images that build" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /out/ /
ENTRYPOINT ["/sccache-dock"]
