# Prepare, train and export: `docker build -f docker/training.Dockerfile -t diptych-training .`
# For NVIDIA GPUs: `--build-arg TORCH_INDEX=https://pypi.org/simple`, whose torch includes CUDA; run it with `--gpus all`.
ARG PYTHON=3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3008  # a compiler for hnswlib; Debian's current version
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV HNSWLIB_NO_NATIVE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/diptych && python -m venv --without-pip /opt/sbom
WORKDIR /src
# Dependencies first, with hashes checked: this layer is reused while only the project's code changes.
# torch is installed first and separately, so that no other package comes from its index.
COPY pyproject.toml constraints.txt docker/constraints-torch-cuda.txt .ci/requirements.py .ci/requirements-build.txt ./
RUN /opt/diptych/bin/python -m pip install --require-hashes --requirement requirements-build.txt \
    && /opt/diptych/bin/python requirements.py export cpu s3 >requirements.txt \
    && echo torch >torch.txt && /opt/diptych/bin/python -m pip install --require-hashes --no-deps \
    --index-url "${TORCH_INDEX}" --constraint constraints.txt --requirement torch.txt \
    && /opt/diptych/bin/python -m pip install --require-hashes --no-build-isolation \
    --constraint constraints.txt --constraint constraints-torch-cuda.txt --requirement requirements.txt \
    && echo cyclonedx-bom >sbom.txt && /opt/diptych/bin/python -m pip --python /opt/sbom install --require-hashes \
    --constraint constraints.txt --requirement sbom.txt
COPY README.md LICENSE diptych.py ./
COPY retrieval retrieval
COPY service service
COPY loadtest loadtest
COPY doctor doctor
COPY training training
COPY export export
# Remove the build tools except setuptools, which torch needs, then write an SBOM of the rest (CycloneDX).
RUN /opt/diptych/bin/python -m pip install --no-index --no-deps --no-build-isolation . \
    && /opt/diptych/bin/python -m pip uninstall --yes editables hatchling pathspec pluggy pybind11 tomlkit \
    trove-classifiers wheel pip \
    && mkdir -p /opt/diptych/share && /opt/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml \
    --mc-type application --output-reproducible --output-file /opt/diptych/share/sbom.cdx.json /opt/diptych

FROM python:${PYTHON}
RUN mkdir /store /work && chown 10001:10001 /store /work
COPY --from=build /opt/diptych /opt/diptych
COPY docker/train.sh /usr/local/bin/train
COPY examples/keywords /data
ENV PATH=/opt/diptych/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/work HF_HOME=/work/huggingface
USER 10001:10001
WORKDIR /work
VOLUME ["/store", "/work"]
CMD ["train"]
