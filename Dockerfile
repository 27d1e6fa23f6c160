# docker build --build-arg EXTRA=gpu -t IMAGE . (or EXTRA=tpu), see docs/pods.md
FROM python:3.11-slim
ARG EXTRA=gpu
WORKDIR /instructretro
COPY requirements.txt .
RUN python -m pip install --no-cache-dir --require-hashes -r requirements.txt
COPY . .
RUN python -m pip install --no-cache-dir ".[$EXTRA]"
ENTRYPOINT ["instructretro"]
