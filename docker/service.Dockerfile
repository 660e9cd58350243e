# The service: `docker build -f docker/service.Dockerfile -t diptych-service .`
# For NVIDIA GPUs: `--build-arg VARIANT=gpu` installs CUDA and cuDNN as Python packages; run it with DIPTYCH_PROVIDER=cuda.
ARG PYTHON=3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM python:${PYTHON} AS build
ARG VARIANT=cpu
# hadolint ignore=DL3008  # a compiler for hnswlib; Debian's current version
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# hnswlib for any processor of this architecture, not only the build machine's
ENV HNSWLIB_NO_NATIVE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/diptych && python -m venv --without-pip /opt/sbom
WORKDIR /src
# Dependencies first, with hashes checked: this layer is reused while only the project's code changes.
COPY pyproject.toml constraints.txt docker/constraints-gpu.txt .ci/requirements.py .ci/requirements-build.txt ./
RUN /opt/diptych/bin/python -m pip install --require-hashes --requirement requirements-build.txt \
    && /opt/diptych/bin/python requirements.py serve s3 otel milvus "${VARIANT}" >requirements.txt \
    && if [ "${VARIANT}" = gpu ]; then echo "onnxruntime-gpu[cuda,cudnn]" >>requirements.txt; fi \
    && /opt/diptych/bin/python -m pip install --require-hashes --no-build-isolation \
    --constraint constraints.txt --constraint constraints-gpu.txt --requirement requirements.txt \
    && echo cyclonedx-bom >sbom.txt && /opt/diptych/bin/python -m pip --python /opt/sbom install --require-hashes \
    --constraint constraints.txt --requirement sbom.txt
COPY README.md LICENSE diptych.py ./
COPY retrieval retrieval
COPY service service
COPY loadtest loadtest
COPY doctor doctor
COPY training training
COPY export export
# Remove the build tools, then write an SBOM of the rest (CycloneDX).
RUN /opt/diptych/bin/python -m pip install --no-index --no-deps --no-build-isolation . \
    && /opt/diptych/bin/python -m pip uninstall --yes editables hatchling pathspec pluggy pybind11 setuptools tomlkit \
    trove-classifiers wheel pip \
    && mkdir -p /opt/diptych/share && /opt/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml \
    --mc-type application --output-reproducible --output-file /opt/diptych/share/sbom.cdx.json /opt/diptych

FROM python:${PYTHON}
# The service writes only to these two folders: run it with a read-only root file system.
RUN python -m pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && mkdir /store /cache && chown 10001:10001 /store /cache
COPY --from=build /opt/diptych /opt/diptych
ENV PATH=/opt/diptych/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    DIPTYCH_HOST=0.0.0.0 DIPTYCH_STORE=/store DIPTYCH_CACHE=/cache DIPTYCH_LOG_FORMAT=json
USER 10001:10001
VOLUME ["/store", "/cache"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["diptych"]
CMD ["serve"]
