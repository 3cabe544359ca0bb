"""The recipe for MLflow, with a store of local files, in a process of its own: MLflow warns and patches a lot."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from resnet_export.runtime import open_session
from tests import parity_bundle
from tests.tiny_bundle import FP32

PROGRAM = """
import json, sys
from pathlib import Path
import mlflow

store, recipe, bundle, image = sys.argv[1:]
mlflow.set_tracking_uri("file:" + store)
with mlflow.start_run():
    model = mlflow.pyfunc.log_model(
        name="resnet50", python_model=recipe, artifacts={"bundle": bundle}, pip_requirements=["resnet-export[cpu]"]
    )
loaded = mlflow.pyfunc.load_model(model.model_uri)
print(json.dumps(loaded.predict([Path(image).read_bytes()])))
"""


@pytest.mark.slow
def test_a_bundle_logged_to_mlflow_answers_as_its_session(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: make .venv/.scale")
    bundle = parity_bundle.write(tmp_path / "tiny", [FP32])
    file = io.BytesIO()
    Image.fromarray(parity_bundle.crops(1)[0]).resize((40, 30)).save(file, "JPEG")
    image = tmp_path / "image.jpg"
    image.write_bytes(file.getvalue())
    recipe = Path(__file__).parents[2] / "examples" / "mlflow_model.py"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, (tmp_path / "store", recipe, bundle, image))],
        capture_output=True,
        text=True,
        env=os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true"},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with open_session(bundle) as session:
        (expected,) = session.classify([image])
    (found,) = json.loads(done.stdout.splitlines()[-1])
    assert found == {one.label: pytest.approx(one.probability, abs=1e-6) for one in expected}
