# The runtime and one engine, for a host that opens bundles: no torch, no exporter's packages.
#   python -m build --wheel && docker build -f docker/edge.Dockerfile -t resnet-export-edge .
#   docker run --rm -v $PWD/resnet50:/bundle:ro -v $PWD/photos:/photos:ro resnet-export-edge infer /bundle /photos
FROM python:3.11-slim
COPY exporter/data/constraints.txt dist/*.whl /tmp/
RUN python -m venv /opt/resnet-export \
    && /opt/resnet-export/bin/pip install --no-cache-dir -c /tmp/constraints.txt "$(ls /tmp/*.whl)[cpu,openvino,verify]" \
    && rm /tmp/*.whl
ENV PATH=/opt/resnet-export/bin:$PATH HOME=/tmp
USER nobody
ENTRYPOINT ["resnet-export"]
