# The workbook in a container. Its two commands are those of the README: `test` while the image is built, `lab` when it runs.
#   docker build --tag labs .                                         with a GPU: --build-arg SET=gpu --build-arg TESTS=tests/command_line
#   docker run --rm -p 127.0.0.1:8888:8888 -v labs:/labs/work labs      with a GPU: --gpus all
FROM python:3.12-slim-bookworm

# git: `reset` finds the shipped labs in its history. g++: torch.compile and lab 10 compile with it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 learner && mkdir -p /labs/work && chown -R learner:learner /labs
USER 1000
WORKDIR /labs
COPY --chown=learner:learner . .

# A build sees no GPU: with SET=gpu, TESTS=tests/command_line keeps to tests that need none.
ARG SET=cpu
ARG TESTS=tests
ENV PIP_NO_CACHE_DIR=1
RUN python3 -m labsupport test --fast "--${SET}" "${TESTS}"

# Inside a container its own loopback address cannot be reached; the line above publishes it on the host's alone.
EXPOSE 8888
CMD ["python3", "-m", "labsupport", "lab", "--no-browser", "--port=8888", "--ip=*"]
