# A container to try the package and to work on it, with a GPU or without:
#
#     docker build -t lightning-zico .
#     docker run --rm -it --gpus all lightning-zico make demo
#
# Torch as PyPI has it brings its own CUDA, so that the base needs none. Without a GPU, a tenth of the download is enough:
#
#     docker build -t lightning-zico --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#     docker run --rm -it lightning-zico make demo
FROM python:3.12-slim AS tools
# Debian keeps only the latest version of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends chromium chromium-driver git make \
    && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=""
ENV PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_NO_CACHE_DIR=1
WORKDIR /workspace

FROM tools
COPY . .
RUN make .venv/dev.stamp
ENV PATH="/workspace/.venv/bin:$PATH"
CMD ["bash"]
