# make wheel && docker build -t datamodels .
# docker run --rm --gpus all -v "$PWD:/work" datamodels run digits_50pct.yaml --root runs/digits
#
# pip's usual torch is a CUDA build; --build-arg PIP="--index-url https://download.pytorch.org/whl/cpu" takes the one without.
FROM debian:12-slim
ARG PIP=""
# Triton compiles its kernels with gcc and Python.h.
RUN apt-get update -qq && \
    apt-get install -y -qq --no-install-recommends python3-venv python3-dev gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/datamodels && /opt/datamodels/bin/pip install --no-cache-dir ${PIP} torch torchvision
COPY build/*.whl /tmp/
RUN /opt/datamodels/bin/pip install --no-cache-dir /tmp/*.whl && rm /tmp/*.whl
ENV PATH=/opt/datamodels/bin:$PATH
WORKDIR /work
ENTRYPOINT ["datamodels"]
