# One image for the pods of tokenization and training (cluster/kubernetes). PyTorch's image brings torch and CUDA, and neither is replaced:
#   docker build -t videoar-pretrain:0.1.0 .
# Any other image with Python 3.11 to 3.13 and torch 2.11 or newer will do: --build-arg BASE=...
# Without a GPU, with the locked torch:
#   docker build -t videoar-pretrain:0.1.0-cpu --build-arg BASE=python:3.12-slim --build-arg TORCH=locked .
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE}
ARG TORCH=system

# gcc: Triton builds the starters of its kernels with it on a GPU. openssh-client: hostfile launches. python3-venv: where Debian splits it off.
# wget: KubeRay's probes of a pod's health call it.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev make openssh-client python3-venv wget \
    && rm -rf /var/lib/apt/lists/*
# KubeRay starts Ray in a login shell, whose /etc/profile sets PATH anew.
RUN echo 'export PATH=/opt/videoar/.venv/bin:$PATH' > /etc/profile.d/videoar.sh
RUN useradd --create-home --uid 10001 videoar && install -d -o videoar -g videoar /opt/videoar
USER videoar
WORKDIR /opt/videoar
COPY --chown=videoar:videoar LICENSE README.md Makefile setup.sh pyproject.toml requirements.lock requirements-data.txt ./
COPY --chown=videoar:videoar configs/ configs/
COPY --chown=videoar:videoar cluster/ cluster/
COPY --chown=videoar:videoar pipeline/ pipeline/
COPY --chown=videoar:videoar pretrain/ pretrain/
COPY --chown=videoar:videoar tokenizer/ tokenizer/
# The whole set-up, as a user would run it: .venv over the image's torch, and the public networks (160 MB).
RUN make setup TORCH=${TORCH}
ENV PATH=/opt/videoar/.venv/bin:${PATH}
CMD ["videoar", "--help"]
