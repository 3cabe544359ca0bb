"""What checkpoints say of their images, in every form that they say it in."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.models.preprocessing import choose_preprocessing
from resnet_export.exporter.models.resnet import build
from resnet_export.exporter.models.stated import Stated, stated_by, stated_by_timm, stated_by_torchvision
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.errors import CheckpointError
from resnet_export.runtime.preprocess import normalize, prepare


def chosen(values: dict[str, Any], **request: Any) -> Any:
    return choose_preprocessing(ModelSpec(depth=18, **request), stated_by(values))


@pytest.mark.parametrize(
    ("values", "resize", "crop", "interpolation"),
    [
        ({"args.crop_pct": 0.95, "args.img_size": 288, "args.interpolation": "bicubic"}, 303, 288, "bicubic"),
        ({"args": Namespace(val_resize_size=232, val_crop_size=224)}, 232, 224, "bilinear"),
        ({"args.input_size": [3, 160, 160]}, 183, 160, "bilinear"),
        ({"hyper_parameters.image_size": (96, 128)}, (96, 128), (96, 128), "bilinear"),
        ({"img_size": "64", "interpolation": "InterpolationMode.BICUBIC"}, 73, 64, "bicubic"),
        ({"args.interpolation": "", "args.img_size": None, "args.mean": None}, 256, 224, "bilinear"),
        (
            {"pretrained_cfg": {"input_size": (3, 64, 64), "crop_pct": 0.8, "crop_mode": "squash"}},
            (80, 80),
            64,
            "bilinear",
        ),
        (
            {"preprocessor_config": {"size": {"height": 64, "width": 64}, "resample": 1}},
            (64, 64),
            64,
            "lanczos",
        ),
        (
            {
                "preprocessor_config": {
                    "size": {"shortest_edge": 256},
                    "crop_size": {"height": 224, "width": 224},
                    "do_center_crop": True,
                }
            },
            256,
            224,
            "bilinear",
        ),
        (
            {"preprocessor_config": {"size": 384, "image_processor_type": "ConvNextImageProcessor"}},
            (384, 384),
            384,
            "bilinear",
        ),
        ({"preprocessor_config": {"size": 224, "crop_pct": 0.875, "resample": 3}}, 256, 224, "bicubic"),
    ],
)
def test_sizes_and_filters_are_what_is_stated(
    values: dict[str, Any], resize: Any, crop: Any, interpolation: str
) -> None:
    found = chosen(values)
    assert (found.resize, found.crop, found.interpolation) == (resize, crop, interpolation)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25], ((0.5,) * 3, (0.25,) * 3)),
        ("0.1,0.2,0.3", "0.5 0.5 0.5", ((0.1, 0.2, 0.3), (0.5,) * 3)),
        (np.float32([0.5, 0.5, 0.5]), np.ones(3), ((0.5,) * 3, (1.0,) * 3)),
        ([127.5] * 3, [51.0] * 3, ((0.5,) * 3, (0.2,) * 3)),
        ([0, 0, 0], [255, 255, 255], ((0.0,) * 3, (1.0,) * 3)),
        ([102.0] * 3, [1.0] * 3, ((0.4,) * 3, (1 / 255,) * 3)),
    ],
)
def test_mean_and_standard_deviation_are_read_in_either_unit(mean: Any, std: Any, expected: Any) -> None:
    found = chosen({"args.mean": mean, "args.std": std})
    assert found.mean == pytest.approx(expected[0])
    assert found.std == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"args.interpolation": "random"}, "interpolation='random'"),
        ({"args.mean": [0.5, 0.5]}, "mean=[0.5, 0.5]"),
        ({"args.mean": "ImageNet"}, "mean='ImageNet'"),
        ({"args.crop_pct": 7}, "crop_pct=7"),
        ({"args.std": [0.0, 0.1, 0.1]}, "std=(0.0, 0.1, 0.1)"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode='border'"),
        ({"preprocessor_config": {"rescale_factor": 0.1}}, "rescale_factor=0.1"),
    ],
)
def test_what_cannot_be_used_is_named(values: dict[str, Any], words: str) -> None:
    (said,) = stated_by(values).remarks
    assert words in said
    assert said.endswith("which was not used")


@given(
    st.dictionaries(
        st.sampled_from(["mean", "std", "crop_pct", "img_size", "interpolation", "pretrained_cfg", "args"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_nothing_that_a_file_says_breaks_the_reader(values: dict[str, Any]) -> None:
    stated = stated_by(values)
    assert isinstance(stated, Stated)
    assert all(0 <= one <= 1 for one in (*(stated.mean or ()), *(stated.std or ())))


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "regnet_y_400mf", "vit_b_16"])
def test_an_image_is_prepared_as_torchvisions_own_transforms_do(torchvision: ModuleType, name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    stated = stated_by_torchvision(weights.transforms(), "x")
    found = choose_preprocessing(ModelSpec(depth=18), stated)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    theirs = weights.transforms()(image).numpy()
    np.testing.assert_allclose(normalize(prepare(image, found)[None], found)[0], theirs, atol=0.02)


@pytest.mark.parametrize(
    "name", ["resnet50.a1_in1k", "vit_tiny_patch16_224", "inception_resnet_v2", "convnext_tiny"]
)
def test_an_image_is_prepared_as_timms_own_transforms_do(timm: ModuleType, name: str) -> None:
    config = timm.get_pretrained_cfg(name).to_dict()
    found = choose_preprocessing(ModelSpec(depth=18), stated_by_timm(config))
    data = timm.data.resolve_data_config({}, pretrained_cfg=config)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 400, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**data)(image).numpy()
    np.testing.assert_allclose(normalize(prepare(image, found)[None], found)[0], theirs, atol=0.02)


def test_a_checkpoints_arguments_are_used_and_said_once(tmp_path: Path) -> None:
    state = build(ZOO["resnet18"], 2).state_dict()
    args = Namespace(mean=[0.4] * 3, std=[0.2] * 3, crop_pct=0.9, interpolation="bicubic", img_size=64)
    torch.save({"state_dict": state, "args": args, "class_to_idx": {"b": 1, "a": 0}}, tmp_path / "mine.pth")
    net = load_classifier(ModelSpec(weights=str(tmp_path / "mine.pth")))
    assert (net.preprocessing.resize, net.preprocessing.crop) == (71, 64)
    assert net.preprocessing.mean == (0.4,) * 3
    assert net.labels == ("a", "b")
    assert len([notice for notice in net.notices if "preprocessing" in notice]) == 1
    part = {"state_dict": state, "args": {"img_size": 64}, "classes": ["a", "b", "c"]}
    torch.save(part, tmp_path / "part.pth")
    said = load_classifier(ModelSpec(weights=str(tmp_path / "part.pth"))).notices
    assert any("does not say --resize and --interpolation and --mean and --std" in one for one in said)
    assert any("the names of 3 classes in the checkpoint (a, …) were not used" in one for one in said)


@pytest.mark.parametrize("named", ["resnetblur50", "resnet50_gn", "resnetaa50"])
def test_a_file_that_names_a_network_of_the_same_shapes_is_not_exported_as_another(
    tmp_path: Path, named: str
) -> None:
    torch.save({"state_dict": build(ZOO["resnet50"], 2).state_dict(), "arch": named}, tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=f"says that it is {named}, but its tensors"):
        load_classifier(ModelSpec(weights=str(tmp_path / "mine.pth"), image_size=64))
