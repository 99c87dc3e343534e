# mrrcnn for CPU and GPU: PyPI's torch brings its own CUDA libraries and also runs without a GPU.
#
#   docker build -t mrrcnn .
#   docker run --rm --shm-size=4g -v $PWD/runs:/runs -w /runs mrrcnn demo --run-dir demo
#   docker run --rm --shm-size=4g --gpus all -v /nfs:/nfs -w /nfs mrrcnn run config.yaml --run-dir run
#
# For the operator's CUDA kernels, build on an image with nvcc of the CUDA version that torch was built
# for (mrrcnn doctor shows it): docker build --build-arg BASE=nvidia/cuda:...-devel-ubuntu24.04 .
ARG BASE=ubuntu:24.04
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-dev python3-venv g++ make git \
 && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/mrrcnn
ENV PATH=/opt/mrrcnn/bin:$PATH

WORKDIR /app
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY configs configs
COPY ops ops
COPY shards shards
COPY pipeline pipeline
COPY jobs jobs
# The build needs the torch that it will run with, hence no isolation; architectures: Ampere, Hopper.
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX"
RUN pip install -c constraints.txt torch setuptools wheel ninja \
 && pip install -c constraints.txt --no-build-isolation -e . \
 && mrrcnn doctor --run-dir /tmp

WORKDIR /data
ENTRYPOINT ["mrrcnn"]
CMD ["--help"]
