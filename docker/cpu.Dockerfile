# xdyna on CPUs. From the top of a checkout:
#
#   docker build -f docker/cpu.Dockerfile -t xdyna:cpu .
#   mkdir -p outputs    # else Docker makes it, as root
#   docker run --rm -v "$PWD/outputs:/home/user/xdyna/outputs" xdyna:cpu make demo
#
# The image itself is unbuilt: no Docker was at hand. Its steps were run one by one in a minimal Debian 13, but for PyTorch's own index.
FROM debian:trixie-slim

RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates git make python3 python3-venv libegl1 libgles2 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home user
USER user
# Made here, since WORKDIR makes it as root with some builders.
RUN mkdir /home/user/xdyna
WORKDIR /home/user/xdyna
COPY --chown=user:user . .
RUN make venv PIP_ARGS="--no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu"
RUN .venv/bin/xdyna --version
CMD ["make", "demo"]
