# NVIDIA's Triton Inference Server with what the python models of `resnet-export triton` import.
#   python -m build --wheel && docker build -f docker/triton.Dockerfile -t resnet-export-triton .
#   docker run --rm --gpus all -p 8000-8002:8000-8002 -v $PWD/models:/models:ro resnet-export-triton
ARG TRITON=nvcr.io/nvidia/tritonserver:25.08-py3
FROM ${TRITON}
COPY dist/*.whl /tmp/
# The python backend takes the packages of the first python3 on the path.
RUN python3 -m venv /opt/resnet-export \
    && /opt/resnet-export/bin/pip install --no-cache-dir "$(ls /tmp/*.whl)[cpu]" "numpy<2" \
    && rm /tmp/*.whl
ENV PATH=/opt/resnet-export/bin:$PATH
CMD ["tritonserver", "--model-repository=/models"]
