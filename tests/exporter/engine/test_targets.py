"""Which engine is built where, and what is said about the rest. Hosts are data, so no GPU is needed."""

from __future__ import annotations

import pytest

from resnet_export.exporter.engine.targets import (
    DEFAULT_RTX_TARGETS,
    FAMILIES,
    PlannedBuild,
    available_flavours,
    parse_target,
    plan_engines,
    sm,
)
from resnet_export.exporter.spec import EngineChoice
from resnet_export.runtime.errors import DependencyError, RequestError
from resnet_export.runtime.select.host import Gpu, HostFacts, Package


def host(*modules: str, gpu: str | None = None) -> HostFacts:
    versions = {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1.116"}
    return HostFacts(
        system="linux",
        machine="x86_64",
        cpus=2,
        packages=tuple(Package(module=name, distribution=name, version=versions[name]) for name in modules),
        gpus=(Gpu(index=0, name="the GPU", compute_capability=gpu, memory=1 << 33),) if gpu else (),
        gpu_note=None if gpu else "there is no NVIDIA driver",
    )


BARE = host()
RTX = host("tensorrt_rtx")
BOTH = host("tensorrt", "tensorrt_rtx")
ORIN = host("tensorrt", gpu="8.7")
DESKTOP = host("tensorrt", "tensorrt_rtx", gpu="8.9")


def test_names_of_gpus_are_read_and_written() -> None:
    assert [parse_target(name) for name in ("sm86", "SM120", " sm103 ")] == ["8.6", "12.0", "10.3"]
    assert [sm(parse_target(sm(row.compute_capability))) for row in FAMILIES] == [
        sm(row.compute_capability) for row in FAMILIES
    ]


@pytest.mark.parametrize("name", ["", "86", "8.6", "sm", "sm8", "sm61", "sm99", "rtx3090", "sm86,sm89"])
def test_what_is_no_known_gpu_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RequestError, match=r"expected one or more of sm75 \(T4"):
        parse_target(name)


def test_tensorrt_builds_with_a_gpu_only_and_rtx_anywhere() -> None:
    assert available_flavours(BARE) == {}
    assert available_flavours(BOTH) == {"tensorrt_rtx": "1.7.1.116"}
    assert available_flavours(DESKTOP) == {"tensorrt_rtx": "1.7.1.116", "tensorrt": "10.3.0"}


@pytest.mark.parametrize(
    ("choice", "gpu", "on", "builds"),
    [
        ("tensorrt-rtx", (), RTX, [PlannedBuild("tensorrt_rtx", DEFAULT_RTX_TARGETS)]),
        ("tensorrt-rtx", ("sm86", "sm89", "sm86"), RTX, [PlannedBuild("tensorrt_rtx", ("8.6", "8.9"))]),
        ("tensorrt-rtx", ("sm75",), RTX, [PlannedBuild("tensorrt_rtx", ("7.5",))]),
        ("tensorrt", (), ORIN, [PlannedBuild("tensorrt", ("8.7",))]),
        ("tensorrt", ("sm87",), ORIN, [PlannedBuild("tensorrt", ("8.7",))]),
        ("auto", ("sm86",), BOTH, [PlannedBuild("tensorrt_rtx", ("8.6",))]),
        ("auto", ("sm86", "sm87"), ORIN, None),
        ("auto", ("sm89",), host("tensorrt", gpu="8.9"), [PlannedBuild("tensorrt", ("8.9",))]),
        ("auto", (), BARE, []),
        ("auto", (), ORIN, [PlannedBuild("tensorrt", ("8.7",))]),
        ("none", (), DESKTOP, []),
    ],
)
def test_what_is_asked_for_is_planned(
    choice: EngineChoice, gpu: tuple[str, ...], on: HostFacts, builds: list[PlannedBuild] | None
) -> None:
    if builds is None:
        with pytest.raises(RequestError):
            plan_engines(choice, gpu, on)
    else:
        assert list(plan_engines(choice, gpu, on).builds) == builds


def test_auto_builds_all_that_a_host_can_and_says_what_it_cannot() -> None:
    everything = plan_engines("auto", (), DESKTOP)
    assert [build.variant for build in everything.builds] == ["tensorrt_rtx", "tensorrt"]
    assert everything.notes == ()
    (note,) = plan_engines("auto", (), RTX).notes
    assert "no TensorRT engine was built" in note
    assert "this host has no NVIDIA GPU" in note
    assert "resnet-export build BUNDLE" in note
    notes = plan_engines("auto", (), BARE).notes
    assert len(notes) == 2
    assert "pip install 'resnet-export[tensorrt-rtx]'" in notes[0]


@pytest.mark.parametrize("device", ["sm87", "sm90", "sm100", "sm103", "sm110"])
@pytest.mark.parametrize("choice", ["tensorrt-rtx", "auto"])
def test_a_gpu_that_rtx_does_not_serve_is_refused_with_the_way_to_get_it(
    device: str, choice: EngineChoice
) -> None:
    with pytest.raises(RequestError) as caught:
        plan_engines(choice, ("sm86", device), RTX)
    message = str(caught.value)
    assert f"TensorRT for RTX does not serve {device}" in message
    assert "TensorRT serves it" in message
    assert "run `resnet-export build BUNDLE --engine tensorrt` there" in message
    assert "\n" not in message


@pytest.mark.parametrize("on", [BARE, BOTH], ids=["nothing installed", "everything installed"])
@pytest.mark.parametrize("gpu", [(), ("sm87",)])
def test_tensorrt_without_a_gpu_is_refused_with_the_way_to_get_it(
    gpu: tuple[str, ...], on: HostFacts
) -> None:
    with pytest.raises(RequestError) as caught:
        plan_engines("tensorrt", gpu, on)
    message = str(caught.value)
    assert "builds only on the GPU that will run the engine" in message
    assert "there is no NVIDIA driver" in message
    assert "resnet-export build BUNDLE" in message


def test_tensorrt_builds_for_no_other_gpu_than_its_own() -> None:
    with pytest.raises(RequestError, match=r"here sm87 \(the GPU\), not for sm90 \(H100, H200, GH200\)"):
        plan_engines("tensorrt", ("sm87", "sm90"), ORIN)


@pytest.mark.parametrize(
    ("choice", "gpu"), [("tensorrt-rtx", ()), ("tensorrt", ()), ("tensorrt", ("sm87",)), ("auto", ("sm86",))]
)
def test_a_missing_package_is_named_with_its_install_line(choice: EngineChoice, gpu: tuple[str, ...]) -> None:
    with pytest.raises(DependencyError, match=r"pip install 'resnet-export\[tensorrt"):
        plan_engines(choice, gpu, host(gpu="8.7"))


def test_gpus_without_an_engine_are_a_contradiction() -> None:
    with pytest.raises(RequestError, match="--engine none"):
        plan_engines("none", ("sm86",), RTX)
