# Two commands: `make run` exports ResNet-50, then trains a small ResNet and exports it, and shows what came out;
# `make test` runs the test suite.
# Both set up what they need in .venv and can follow each other in any order.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
SOURCES := exporter calibration runtime tests benchmarks examples fuzz

.PHONY: run test test-all gpu-check lint typecheck clean

# The stamps carry the dependency files, so a change of either installs again and nothing else does.
$(VENV)/.run: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[cpu,openvino,export,tensorrt-rtx,report]' scikit-learn
	touch $@

# Tests that need strace, cmake or a C++ compiler are skipped by name where they are not: apt-get install strace cmake g++.
$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev,opentelemetry,prometheus,sign,triton]'
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-deps torchvision timm
	$(BIN)/python -m tests.nvidia_bindings
	$(BIN)/python -m tests.chromium
	touch $@

# What the slow tests of docs/scale.md need besides: a real Triton Inference Server with its python backend and no GPU
# (350 MB, of which the server is 150; its backend was built for numpy 1, so it has an environment of its own), Ray
# (400 MB) and MLflow (150 MB).
$(VENV)/.scale: $(VENV)/.test
	test -x $(VENV)/tritonserver/bin/python || $(PYTHON) -m venv $(VENV)/tritonserver
	$(VENV)/tritonserver/bin/python -m pip install --quiet --no-deps nvidia-pytriton==0.7.0
	$(VENV)/tritonserver/bin/python -m pip install --quiet numpy==1.26.4 --editable '.[cpu]'
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[ray]' mlflow-skinny pandas
	touch $@

run: $(VENV)/.run
	mkdir -p build
	$(BIN)/resnet-export --depth 50 --fp16 --int8 --calib exporter/data/photos --gpu sm86,sm89 --out build/resnet50 --force
	$(BIN)/resnet-export inspect build/resnet50 --layers | grep -E '^tensorrt|convolutions'
	$(BIN)/python examples/classify.py build/resnet50 $$($(BIN)/python examples/photographs.py)
	$(BIN)/python examples/train_digits.py build/digits
	$(BIN)/resnet-export --weights build/digits/resnet20.pth --int8 --calib build/digits/calib --val build/digits/val \
		--out build/resnet20 --force
	$(BIN)/python examples/classify.py build/resnet20 $$(for digit in 3 5 8; do ls build/digits/val/$$digit/*.png | head -n 1; done)

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# On a machine with an NVIDIA GPU and whatever TensorRT is in .venv: every backend, precision and check there is.
gpu-check: $(VENV)/.run
	$(BIN)/python -m benchmarks.gpu_check --out build/gpu-check.md

# The whole matrix as well: every row of the zoo, every naming scheme. Takes an hour on two cores.
test-all: $(VENV)/.test $(VENV)/.scale
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile -m ""

lint: $(VENV)/.test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# mypy does not follow setuptools' package-dir mapping; a tree of links gives it the installed names.
typecheck: $(VENV)/.test
	mkdir -p $(VENV)/types/resnet_export
	for folder in exporter calibration runtime; do ln -sfn ../../../$$folder $(VENV)/types/resnet_export/$$folder; done
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p resnet_export.exporter -p resnet_export.calibration -p resnet_export.runtime

clean:
	rm -rf $(VENV) build *.egg-info
