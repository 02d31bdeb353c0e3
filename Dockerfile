# The worker alone. PyTorch brings its CUDA libraries along: a GPU needs only the host's driver.
# Models are not part of it: `copysieve models pull` fills a folder with them; mount it and set
# COPYSIEVE_MODEL__CACHE to it.

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/copysieve
ENV PATH=/opt/copysieve/bin:$PATH
COPY requirements/runtime.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
COPY --from=build /opt/copysieve /opt/copysieve
COPY config/worker.yaml /etc/copysieve/worker.yaml
ENV PATH=/opt/copysieve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/var/cache/copysieve
RUN install --directory --owner=10001 --group=10001 /var/cache/copysieve
USER 10001:10001
EXPOSE 9464
# The worker handles SIGTERM itself, also as process 1: no init is needed.
ENTRYPOINT ["copysieve"]
CMD ["run", "--config", "/etc/copysieve/worker.yaml"]
