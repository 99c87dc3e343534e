# mrrcnn for CPUs and, with a toolkit for the operator's CUDA kernels, for GPUs.
#
#   docker build -t mrrcnn:0.1.0 .
#   docker build -t mrrcnn:0.1.0-gpu --build-arg BASE=nvidia/cuda:13.2.0-devel-ubuntu24.04 .
#
#   mkdir -p runs
#   docker run --rm --init --shm-size=4g -v $PWD/runs:/runs -w /runs --user $(id -u) mrrcnn:0.1.0 demo --run-dir demo
#   docker run --rm --init --shm-size=4g --gpus all -v /nfs:/nfs -w /nfs --user $(id -u) \
#     mrrcnn:0.1.0-gpu run config.yaml --run-dir run
#
# --init: as process 1 a program hears no `docker stop` unless it handles it.
#
# BASE of the GPU form has nvcc of the CUDA version that torch was built for (mrrcnn doctor shows it). Either
# form trains on a GPU if there is one: PyPI's torch brings CUDA's libraries; the CPU form's operator is then
# the plain PyTorch one. jobs/manifests has what starts these images on a cluster.
ARG BASE=ubuntu:24.04
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
# wget: with it KubeRay asks a pod whether it is well. rsync, openssh-client: with them `ray up` brings files,
# and its head starts the workers.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-dev python3-venv g++ make git wget \
    rsync openssh-client \
 && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/mrrcnn
ENV PATH=/opt/mrrcnn/bin:$PATH
# KubeRay starts Ray in a login shell, whose profile sets the path anew.
RUN echo 'export PATH=/opt/mrrcnn/bin:$PATH' > /etc/profile.d/mrrcnn.sh

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

# Whoever runs it, with whatever number, has a home that can be written to.
ENV HOME=/home/mrrcnn
RUN mkdir -p /home/mrrcnn /data && chmod 1777 /home/mrrcnn /data
# Copied with the modes that they had outside.
RUN chmod -R a+rX /app
WORKDIR /data
# Also where nobody says who: of the pods, the one in which KubeRay submits the job.
USER 1000
ENTRYPOINT ["mrrcnn"]
CMD ["--help"]
