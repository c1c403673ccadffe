# syntax=docker/dockerfile:1
# For machines with NVIDIA GPUs (Hopper, Blackwell): docker build -t megatron-omr .
# Not built or run yet; docs/clusters.md says what was checked.

# CUDA 13.0 is what the wheel of torch 2.11.0 on PyPI is built for: the same compiler and headers build the extension of
# Transformer Engine, and Triton and vLLM compile kernels with them as they run, hence "devel". Needs driver 580 or newer.
# Ubuntu 24.04 has Python 3.12, for which Megatron-Core, Transformer Engine and vLLM have wheels.
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

# torch: the one that vllm 0.26.0 in setup.py asks for, to the digit. setup.py pins both; a test compares.
ARG TORCH=2.11.0
# The newest that the CUDA libraries of torch 2.11 load is 2.12; 2.11 is the newest that Megatron-Core 0.16.1 is made for.
ARG TRANSFORMER_ENGINE=2.11.0
# What all tests here run on, and what ran on an H200 with Transformer Engine 2.11. Newer ones, up to 0.19, need
# Transformer Engine 2.14 for their fused gradient clipping.
ARG MEGATRON_CORE=0.16.1
# Compilers at once; each takes up to 2.5 GB.
ARG MAX_JOBS=8

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# libibverbs and its drivers: NCCL loads them for InfiniBand and RoCE, and without them falls back to sockets.
# numactl's library: vLLM. git: a run records the commit of its code. The newest of Ubuntu 24.04 is wanted of each.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        git ibverbs-providers libibverbs1 libnuma1 librdmacm1 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv
ENV PATH=$VIRTUAL_ENV/bin:$PATH
WORKDIR /opt/megatron-omr
COPY . .

# The packages are those of the extra "gpu" in setup.py. Transformer Engine has no wheel of its torch extension: it is
# built here against the torch that is installed first, so without isolation, and never taken from elsewhere.
ENV NVTE_FRAMEWORK=pytorch NVTE_PYTORCH_FORCE_BUILD=TRUE
# Tools that only build, and the packages that setup.py leaves open, are not pinned.
# hadolint ignore=DL3013
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir "torch==$TORCH" 'cmake<4' ninja packaging pybind11 setuptools wheel \
    && NVTE_BUILD_MAX_JOBS="$MAX_JOBS" pip install --no-cache-dir --no-build-isolation \
        "torch==$TORCH" "transformer-engine==$TRANSFORMER_ENGINE" "megatron-core==$MEGATRON_CORE" --editable '.[gpu]'

# Under pyxis and enroot a job runs as the user who submits it; elsewhere as this one, who owns nothing of the image.
RUN useradd --create-home --uid 10001 omr
USER 10001
WORKDIR /home/omr
CMD ["omr", "doctor"]
