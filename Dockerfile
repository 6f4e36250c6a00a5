# Two images: `service` answers over HTTP and has no torch; `training` runs every verb of `slimp`.
#
#   docker build --target service --build-arg ACCELERATOR=gpu -t slimp-service .
#
# ACCELERATOR  cpu or gpu: which of the two extras is installed
# PIP_*        pip's own settings, empty by default: where a site's packages come from, or a CPU
#              build of torch
ARG ACCELERATOR=cpu

FROM python:3.11-slim-bookworm AS environment
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_FIND_LINKS=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/slimp
ENV PATH=/opt/slimp/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The requirements of one extra, so that packages are installed before the code is copied.
RUN printf '%s\n' \
    'import sys, tomllib' \
    'project = tomllib.load(open("pyproject.toml", "rb"))["project"]' \
    'extras = project["optional-dependencies"]' \
    'print(*project["dependencies"], *(r for e in sys.argv[1:] for r in extras[e]), sep="\n")' \
    > requirements.py

FROM environment AS service-environment
ARG ACCELERATOR
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_FIND_LINKS=
RUN --mount=type=cache,target=/root/.cache/pip \
    python requirements.py "$ACCELERATOR" > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

FROM environment AS training-environment
ARG ACCELERATOR
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_FIND_LINKS=
RUN --mount=type=cache,target=/root/.cache/pip \
    python requirements.py "$ACCELERATOR" train > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

FROM python:3.11-slim-bookworm AS runtime
# A volume that is first mounted on /data takes over its owner.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin slimp \
    && install -d -o slimp -g slimp /data
ENV PATH=/opt/slimp/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
USER 10001
VOLUME /data
ENTRYPOINT ["slimp"]

FROM runtime AS training
COPY --from=training-environment /opt/slimp /opt/slimp
CMD ["--help"]

FROM runtime AS service
COPY --from=service-environment /opt/slimp /opt/slimp
# Pixels of a picture come and go in blocks of megabytes; each is given back when it is free instead
# of kept for the thread that used it (docs/reliability.md).
ENV MALLOC_MMAP_THRESHOLD_=1048576
# Inside a container every address is the container's own; what is reachable is what is published.
ENV SLIMP_HOST=0.0.0.0 SLIMP_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['SLIMP_PORT']}/readyz\", timeout=4)"]
CMD ["serve"]
