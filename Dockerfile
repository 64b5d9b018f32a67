# Unlearn Lab in a container, with the CUDA of torch's default wheels: docker build -t unlearn-lab .
# For CPUs, or another CUDA, with the index that pytorch.org names for it (pip's default wheels are gigabytes larger):
#   docker build -t unlearn-lab:cpu --build-arg TORCH_INDEX=URL .
# Runs stay in the folder that is mounted: docker run --rm -v "$PWD:/work" unlearn-lab method=npo
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

ARG TORCH_INDEX=""
ARG EXTRAS=slurm,sweeps,wandb
ARG UID=1000

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1
WORKDIR /opt/unlearn-lab
COPY constraints.txt ./
# Versions are those of constraints.txt.
# hadolint ignore=DL3013
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
COPY . .
RUN pip install -c constraints.txt ".[${EXTRAS}]"

RUN useradd --create-home --uid "${UID}" unlearn \
    && install --directory --owner=unlearn /work
USER ${UID}
WORKDIR /work
ENTRYPOINT ["unlearn"]
