# The recipe as an image: Debian, Python and one of the two stacks, whose wheels bring CUDA along. The driver is the
# machine's.
#
#   docker build --tag biomedlm .                         # --build-arg PYTHON=3.12 for another Python,
#                                                         # --build-arg VENV=.venv-next for requirements-next.txt
#   docker run --rm --gpus all --ipc host --volume "$PWD/data:/work/data" --volume "$PWD/runs:/work/runs" \
#     biomedlm composer recipes/train.py yamls/smoke-gpu.yaml
#
# The process is uid 1000 and writes to `data` and `runs`.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# gcc is torch.compile's: its kernels are built where they run.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 trainer \
    && install --directory --owner trainer --group trainer /work

# What NVIDIA's container runtime asks of an image that is not built on NVIDIA's own.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER trainer
WORKDIR /work

# The large layer, which changes with the lock alone. The project is installed as a link to folders that the last fills.
ARG VENV=.venv
COPY --chown=trainer Makefile pyproject.toml requirements.txt requirements-next.txt ./
RUN mkdir callbacks data_prep recipes \
    && touch README.md callbacks/__init__.py data_prep/__init__.py recipes/__init__.py \
    && UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 PIP_NO_CACHE_DIR=1 make $VENV/installed
ENV PATH=/work/$VENV/bin:$PATH

# With .git, from which a run records its commit.
COPY --chown=trainer . .
CMD ["make"]
