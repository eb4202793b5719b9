# xdyna on NVIDIA GPUs. From the top of a checkout; the host needs the driver and the NVIDIA Container Toolkit:
#
#   docker build -f docker/cuda.Dockerfile -t xdyna:cuda .
#   mkdir -p outputs    # else Docker makes it, as root
#   docker run --rm --gpus all -v "$PWD/outputs:/home/user/xdyna/outputs" -v "$PWD/pretrained/xdyna:/home/user/xdyna/pretrained/xdyna" \
#     xdyna:cuda .venv/bin/xdyna animate --ref assets/demo/reference.png --drive assets/demo/driving.npz
#
# The image itself is unbuilt, and nothing in it has seen a GPU: neither Docker nor a card was at hand. PyTorch's own wheels bring CUDA, so that
# the base is the same as of cpu.Dockerfile.
FROM debian:trixie-slim

RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates git make python3 python3-venv libegl1 libgles2 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home user
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
USER user
# Made here, since WORKDIR makes it as root with some builders.
RUN mkdir /home/user/xdyna
WORKDIR /home/user/xdyna
COPY --chown=user:user . .
RUN make venv PIP_ARGS="--no-cache-dir"
RUN .venv/bin/xdyna --version
CMD ["make", "demo"]
