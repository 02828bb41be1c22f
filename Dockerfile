# The server, and what it needs to run. ./build.sh image builds it; docs/container.md says what
# it promises. The build needs BuildKit, podman or buildah.

ARG BASE_IMAGE=python:3.13-slim-trixie
ARG DEVICE=cpu

FROM ${BASE_IMAGE} AS build
ARG DEVICE
# Where packages come from, if not from PyPI.
ARG INDEX_URL=
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /build
COPY pyproject.toml uv.lock src/
# Nothing is installed whose hash uv.lock does not have, uv itself included. The secret `ca` holds
# the certificates to trust, where a proxy or a mirror has one of its own.
# hadolint ignore=DL3013
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    set -eu; \
    if [ -e /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi; \
    set -- --quiet --require-hashes ${INDEX_URL:+--index-url "$INDEX_URL"}; \
    python3 -c 'import tomllib; locked = tomllib.load(open("src/uv.lock", "rb"))["package"]; [uv] = (p for p in locked if p["name"] == "uv"); print("uv==" + uv["version"], *("--hash=" + w["hash"] for w in uv["wheels"]))' >uv.txt; \
    python3 -m venv tools; \
    tools/bin/pip install --no-cache-dir --disable-pip-version-check "$@" -r uv.txt; \
    cuda="${DEVICE#cpu}"; \
    tools/bin/uv export --project src --quiet --frozen --no-default-groups --no-emit-project \
      --extra server --extra gcs --extra text --extra image --prune huggingface-hub ${cuda:+--group "$cuda"} --output-file requirements.txt; \
    tools/bin/uv venv --quiet --python "$(command -v python3)" /opt/hloserve; \
    tools/bin/uv pip install --python /opt/hloserve --no-build --no-deps "$@" -r requirements.txt
COPY README.md LICENSE src/
COPY export src/export
COPY hloserve src/hloserve
COPY runtime src/runtime
COPY server src/server
RUN tools/bin/uv pip install --quiet --python /opt/hloserve --no-deps --no-index ./src \
    && rm /opt/hloserve/.lock /opt/hloserve/.gitignore

# Empty, unless `--build-context bundle=DIR` puts a bundle in its place.
FROM scratch AS bundle

# A bundle that is baked in is vouched for as what serves it is: by its digest, in the image. One that
# is not whole ends the build.
FROM build AS pin
ARG DEVICE
# How its programs are compiled, for CPUs: no other machine than the one that builds is at hand.
ARG COMPILE="--threads 1,2,4 --portable"
RUN --mount=type=bind,from=bundle,target=/bundle \
    set -eu; \
    mkdir /pin; \
    if [ -e /bundle/manifest.json ]; then \
      /opt/hloserve/bin/python -m runtime inspect /bundle; \
      sha256sum /bundle/manifest.json >/pin/bundle.sha256; \
      if [ "$DEVICE" = cpu ]; then \
        eval "/opt/hloserve/bin/python -m runtime compile /bundle --cache /pin --device cpu $COMPILE"; \
        chmod 755 /pin/executables; \
        chmod 644 /pin/executables/*; \
      fi; \
    fi

FROM ${BASE_IMAGE} AS cpu

# Hosts mount their driver there. Without a GPU the server ends, where JAX would take the CPU.
FROM ${BASE_IMAGE} AS cuda
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HLOSERVE_DEVICE=cuda \
    HLOSERVE_DEVICES=all

FROM cuda AS cuda12

FROM cuda AS cuda13

FROM ${DEVICE}
ARG BASE_IMAGE
ARG VERSION=
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="hloserve" \
      org.opencontainers.image.description="Serves compiled StableHLO programs over HTTP and gRPC." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /opt/hloserve /opt/hloserve
COPY --from=pin /pin/ /opt/hloserve/
COPY --from=bundle --chmod=555 / /bundle/
# Nothing is written but what goes to /tmp.
ENV PATH=/opt/hloserve/bin:${PATH} \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1
WORKDIR /
USER 65532:65532
EXPOSE 8080 8001
ENTRYPOINT ["/opt/hloserve/bin/python", "-m", "server"]
