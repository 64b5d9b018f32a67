# Unlearn Lab in a container, for CPUs: docker build -t unlearn-lab .
# For GPUs, with the CUDA of PyTorch's wheels: docker build -t unlearn-lab:cuda --build-arg DEVICE=cu130 .
# Runs stay in the folder that is mounted: docker run --rm -v "$PWD:/work" unlearn-lab method=npo
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

ARG DEVICE=cpu
ARG EXTRAS=slurm,sweeps,wandb
ARG UID=1000

# DeepSpeed compiles the operators that it uses.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1
WORKDIR /opt/unlearn-lab
COPY constraints.txt ./
# Versions are those of constraints.txt.
# hadolint ignore=DL3013
RUN pip install -c constraints.txt --extra-index-url "https://download.pytorch.org/whl/${DEVICE}" torch
COPY . .
RUN pip install -c constraints.txt --extra-index-url "https://download.pytorch.org/whl/${DEVICE}" ".[${EXTRAS}]"

RUN useradd --create-home --uid "${UID}" unlearn \
    && install --directory --owner=unlearn /work
USER ${UID}
WORKDIR /work
ENTRYPOINT ["unlearn"]
