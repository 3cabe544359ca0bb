"""Folders and repositories in the hub's form: what they say is used, and what is no classifier is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resnet_export.exporter.models.hub import find_hub_folder
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.models.resnet import build
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.exporter.request import check_request, folder_name
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLASSES = 3
TIMM = {
    "architecture": "cifar_resnet20",
    "num_classes": CLASSES,
    "label_names": ["n1", "n2", "n3"],
    "label_descriptions": {"n1": "ant, insect", "n2": "bee", "n3": "cat"},
    "pretrained_cfg": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.1, 0.2, 0.3],
        "input_size": [3, 48, 48],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "crop_mode": "center",
    },
}
TRANSFORMERS = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
    "id2label": {"0": "ant", "1": "bee", "2": "cat"},
}
CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "crop_pct": 0.875,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 3,
    "size": {"shortest_edge": 64},
}


def network(row: str = "cifar_resnet20") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(ZOO[row], CLASSES).state_dict()


def folder(path: Path, config: Any = None, *, row: str = "cifar_resnet20", **files: Any) -> str:
    """Write a folder with weights; `files` are JSON by name without the suffix."""
    path.mkdir(exist_ok=True)
    save_file(network(row), path / "model.safetensors")
    for name, value in {"config": config, **files}.items():
        if value is not None:
            (path / f"{name}.json").write_text(json.dumps(value))
    return str(path)


def test_a_folder_of_timm_is_the_network_with_its_preprocessing_and_labels(tmp_path: Path) -> None:
    weights = folder(tmp_path / "resnet.a1", TIMM)
    net = load_classifier(ModelSpec(weights=weights))
    assert net.info.arch == "cifar_resnet20"
    assert net.preprocessing == Preprocessing(
        resize=50, crop=48, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
    )
    assert net.labels == ("ant, insect", "bee", "cat")
    assert (net.info.weights.source, net.info.weights.name) == ("file", "resnet.a1/model.safetensors")
    (said,) = [notice for notice in net.notices if "preprocessing" in notice]
    assert said.startswith("preprocessing as timm's pretrained_cfg says: shorter side to 50 (bicubic)")
    assert "assumed" not in said
    check_request(ModelSpec(weights=weights), ExportSpec())
    assert folder_name(ModelSpec(weights=weights)) == "resnet.a1"


def test_an_explicit_option_wins_over_what_the_folder_says(tmp_path: Path) -> None:
    weights = folder(tmp_path / "net", TIMM)
    net = load_classifier(ModelSpec(weights=weights, image_size=32, mean=(0.9, 0.9, 0.9)))
    assert (net.preprocessing.crop, net.preprocessing.resize) == (32, 33)
    assert net.preprocessing.mean == (0.9, 0.9, 0.9)
    assert net.preprocessing.std == (0.1, 0.2, 0.3)


def test_a_folder_of_transformers_is_the_network_with_its_preprocessing_and_labels(tmp_path: Path) -> None:
    weights = folder(tmp_path / "net", TRANSFORMERS, row="resnet18", preprocessor_config=CONVNEXT)
    net = load_classifier(ModelSpec(weights=weights))
    assert net.info.arch == "resnet18"
    assert net.labels == ("ant", "bee", "cat")
    assert net.preprocessing == Preprocessing(
        resize=73, crop=64, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    )


@pytest.mark.parametrize(("first", "arch"), [(False, "resnet50"), (True, "resnet50_v1")])
def test_transformers_says_where_the_stride_is(tmp_path: Path, first: bool, arch: str) -> None:
    config = {"depths": [3, 4, 6, 3], "layer_type": "bottleneck", "downsample_in_bottleneck": first}
    weights = folder(tmp_path / "net", TRANSFORMERS | config, row="resnet50")
    assert load_classifier(ModelSpec(weights=weights)).info.arch == arch


def test_older_files_and_pickled_weights_are_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    torch.save(network(), tmp_path / "net" / "pytorch_model.bin")
    flat = {"architecture": "cifar_resnet20", "labels": ["a", "b", "c"], **TIMM["pretrained_cfg"]}  # type: ignore[dict-item]
    (tmp_path / "net" / "config.json").write_text(json.dumps(flat))
    net = load_classifier(ModelSpec(weights=str(tmp_path / "net")))
    assert net.labels == ("a", "b", "c")
    assert (net.preprocessing.resize, net.preprocessing.crop) == (50, 48)


def test_an_architecture_that_only_timm_has_is_built_by_timm(timm: ModuleType, tmp_path: Path) -> None:
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=CLASSES).eval()
    weights = folder(tmp_path / "net", TIMM | {"architecture": "mobilenetv3_small_050"})
    save_file(theirs.state_dict(), tmp_path / "net" / "model.safetensors")
    net = load_classifier(ModelSpec(weights=weights))
    assert net.info.arch == "timm:mobilenetv3_small_050"
    assert net.info.weights.name == "net/model.safetensors"
    assert net.labels == ("ant, insect", "bee", "cat")
    assert net.preprocessing.crop == 48
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(net.module(image), theirs(image))  # type: ignore[operator]


def _without_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def _sharded(path: Path) -> None:
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text("{}")


def _broken(path: Path) -> None:
    (path / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        (TIMM, _without_weights, r"has no model\.safetensors and no pytorch_model\.bin .config\.json."),
        (TIMM, _sharded, r"are in several files .model-00001-of-00002\.safetensors, ….*expected one"),
        (TIMM, _broken, r"config\.json cannot be read as JSON"),
        (["a"], None, r"config\.json holds a list, expected an object"),
        ({"architectures": ["BertForSequenceClassification"], "model_type": "bert"}, None, "of BertForSeq"),
        ({"architectures": ["ResNetModel"], "model_type": "resnet"}, None, "expected an image classifier"),
        (
            {"architectures": ["ViTForImageClassification"], "model_type": "vit"},
            None,
            "is of a vit of transf",
        ),
        (TRANSFORMERS | {"hidden_act": "gelu"}, None, "has hidden_act='gelu', with which"),
        (TRANSFORMERS | {"downsample_in_first_stage": True}, None, "has downsample_in_first_stage=True"),
        (TIMM | {"num_classes": 0}, None, "feature extractor without a classifier"),
    ],
)
def test_a_folder_of_something_else_is_refused_in_one_sentence(
    tmp_path: Path, config: Any, change: Callable[[Path], None] | None, words: str
) -> None:
    weights = folder(tmp_path / "net", config)
    if change is not None:
        change(tmp_path / "net")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_classifier(ModelSpec(weights=weights))
    assert "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """The two addresses of the hub that a download needs: what a repository holds, and a file of it."""

    files: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.asked.append(self.path)
        kind = "application/json"
        if self.path.startswith("/api/models/me/net"):
            revision = self.path.rpartition("/revision/")[2]
            known = "/revision/" not in self.path or revision in ("main", "v1", COMMIT)
            names = [{"rfilename": path.name} for path in sorted(self.files.iterdir())]
            data = json.dumps({"id": "me/net", "sha": COMMIT, "siblings": names}).encode() if known else None
        else:
            path = self.files / self.path.rpartition("/")[2]
            known = self.path.startswith(f"/me/net/resolve/{COMMIT}/") and path.is_file()
            data, kind = (path.read_bytes() if known else None), "application/octet-stream"
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header("X-Error-Code", "RevisionNotFound")
            data = b""
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{abs(hash(data))}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    folder(tmp_path / "remote", TIMM)
    handler = type("OneHub", (Hub,), {"files": tmp_path / "remote", "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = pytest.importorskip("huggingface_hub.constants")
    address = f"http://127.0.0.1:{server.server_port}"  # as HF_ENDPOINT, which is read at import
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_a_repository_is_fetched_at_one_commit_that_is_recorded(hub: type[Hub], revision: str) -> None:
    net = load_classifier(ModelSpec(weights=f"hf:me/net{revision}"))
    assert net.info.weights.source == "hub"
    assert net.info.weights.name == "me/net"
    assert net.info.weights.revision == COMMIT
    assert net.labels == ("ant, insect", "bee", "cat")
    assert all(COMMIT in path for path in hub.asked if "/resolve/" in path)
    assert folder_name(ModelSpec(weights=f"hf:me/net{revision}")) == "net"


def test_what_cannot_be_fetched_is_refused_in_one_sentence(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"hf:me/net@v9 cannot be fetched .RevisionNotFound") as caught:
        find_hub_folder("hf:me/net@v9")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="is not hf:OWNER/NAME"):
        find_hub_folder("hf:me")
    (hub.files / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        find_hub_folder("hf:me/net")
    (hub.files / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        find_hub_folder("hf:me/net")
