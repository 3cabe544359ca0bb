"""A bundle as an MLflow pyfunc: image bytes in, labels out. Given to `log_model` as a file, so that nothing is pickled.

mlflow.pyfunc.log_model(name="resnet50", python_model="examples/mlflow_model.py", artifacts={"bundle": "resnet50"})
"""

from __future__ import annotations

from typing import Any

import mlflow
import mlflow.pyfunc

from resnet_export.runtime import open_session


class BundleModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        self.session = open_session(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: list[bytes]) -> list[dict[str, float]]:
        found = self.session.classify(model_input)
        return [{one.label: one.probability for one in labels} for labels in found]


mlflow.models.set_model(BundleModel())
