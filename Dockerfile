# Follows the README: docker build -t lingo_ds . && docker run --rm lingo_ds lingo-ds train --config quickstart
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends make g++ pdsh openssh-client && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/lingo_ds
COPY constraints.txt setup.py pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir -c constraints.txt torch
COPY lingo_ds lingo_ds
COPY recipes recipes
COPY ds_configs ds_configs
COPY launchers launchers
RUN pip install --no-cache-dir -c constraints.txt .
WORKDIR /work
