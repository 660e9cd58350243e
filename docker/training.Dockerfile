# Prepare, train and export: `docker build -f docker/training.Dockerfile -t diptych-training .`
# For NVIDIA GPUs: `--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130`, and `--gpus all` when it runs.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3008  # a compiler for hnswlib; what is built is pinned, what builds it is Debian's newest
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV HNSWLIB_NO_NATIVE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/diptych
WORKDIR /src
# first what others wrote, a layer that stays as it is while only our own lines change;
# of it torch first and from its own index, so that nothing else is ever looked for there
COPY pyproject.toml constraints.txt LICENSE ./
RUN touch README.md && /opt/diptych/bin/pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" \
    --extra-index-url https://pypi.org/simple torch \
    && /opt/diptych/bin/pip install --constraint constraints.txt ".[export,cpu,s3]"
COPY README.md diptych.py ./
COPY retrieval retrieval
COPY service service
COPY training training
COPY export export
RUN /opt/diptych/bin/pip install --no-deps --force-reinstall . \
    && /opt/diptych/bin/pip uninstall --yes pip

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
