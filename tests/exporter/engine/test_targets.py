"""Which engine is built where, and what is said about the rest. Hosts are data, so no GPU is needed."""

from __future__ import annotations

import pytest

from resnet_export.exporter.engine.targets import (
    DEFAULT_RTX_TARGETS,
    FAMILIES,
    PlannedBuild,
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


@pytest.mark.parametrize(
    "form", ["sm{}{}", "SM{}{}", "sm_{}{}", "{}.{}", "{}{}", "compute_{}{}", "{}.{}a", "{}.{}+PTX"]
)
def test_a_compute_capability_is_understood_in_every_spelling_of_the_tools(form: str) -> None:
    for row in FAMILIES:
        assert parse_target(form.format(*row.compute_capability.split("."))) == row.compute_capability


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ("7.5", ["T4", "Tesla T4", "NVIDIA GeForce RTX 2080 Ti", "Quadro RTX 6000", "GTX 1660 Ti"]),
        ("8.0", ["a100", "NVIDIA A100-SXM4-80GB", "A100 80GB PCIe", "A30"]),
        ("8.6", ["rtx3090", "RTX 3090", "GeForce RTX 3060 Laptop GPU", "NVIDIA RTX A6000", "A10G", "A40"]),
        ("8.7", ["Jetson AGX Orin", "Orin Nano", "Orin (nvgpu)", "orin"]),
        ("8.9", ["L4", "L40S", "rtx4070ti", "RTX 4080 SUPER", "NVIDIA RTX 6000 Ada Generation"]),
        ("9.0", ["NVIDIA H100 80GB HBM3", "H100 NVL", "h200", "GH200 480GB"]),
        ("10.0", ["B200", "GB200"]),
        ("11.0", ["Jetson Thor"]),
        ("12.0", ["RTX 5090", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"]),
        ("12.1", ["DGX Spark", "GB10"]),
    ],
)
def test_a_card_is_understood_by_its_name(capability: str, names: list[str]) -> None:
    assert {name: parse_target(name) for name in names} == dict.fromkeys(names, capability)


def test_the_devices_that_a_refusal_lists_are_understood_themselves() -> None:
    for row in FAMILIES:
        for name in row.devices.split(", "):
            if not name.endswith(("series", "Blackwell")):
                assert parse_target(name) == row.compute_capability


@pytest.mark.parametrize(
    "name",
    [
        "",
        "8",
        "sm",
        "sm8",
        "sm61",
        "6.1",
        "sm99",
        "V100",
        "RTX 9999",
        "RTX 6000",
        "cuda:0",
        "gpu",
        "sm86,sm89",
    ],
)
def test_what_is_no_known_gpu_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RequestError, match=r"expected one or more of sm75 \(T4"):
        parse_target(name)


@pytest.mark.parametrize(
    ("choice", "gpu", "on", "builds"),
    [
        ("tensorrt-rtx", (), RTX, [PlannedBuild("tensorrt_rtx", DEFAULT_RTX_TARGETS)]),
        ("tensorrt-rtx", ("sm86", "sm89", "sm86"), RTX, [PlannedBuild("tensorrt_rtx", ("8.6", "8.9"))]),
        ("tensorrt-rtx", ("sm75",), RTX, [PlannedBuild("tensorrt_rtx", ("7.5",))]),
        ("tensorrt", (), ORIN, [PlannedBuild("tensorrt", ("8.7",))]),
        ("tensorrt", ("sm87",), ORIN, [PlannedBuild("tensorrt", ("8.7",))]),
        ("auto", ("sm86",), BOTH, [PlannedBuild("tensorrt_rtx", ("8.6",))]),
        (
            "auto",
            ("sm86", "sm87"),
            host("tensorrt", "tensorrt_rtx", gpu="8.7"),
            [PlannedBuild("tensorrt_rtx", ("8.6",)), PlannedBuild("tensorrt", ("8.7",))],
        ),
        ("auto", ("sm89",), host("tensorrt", gpu="8.9"), [PlannedBuild("tensorrt", ("8.9",))]),
        ("auto", (), BARE, []),
        ("auto", (), ORIN, [PlannedBuild("tensorrt", ("8.7",))]),
        ("none", (), DESKTOP, []),
    ],
)
def test_what_is_asked_for_is_planned(
    choice: EngineChoice, gpu: tuple[str, ...], on: HostFacts, builds: list[PlannedBuild]
) -> None:
    plan = plan_engines(choice, gpu, on)
    assert list(plan.builds) == builds
    assert plan.notes == () or not gpu


@pytest.mark.parametrize(
    ("choice", "gpu", "on", "built", "missed"),
    [
        ("auto", ("sm86", "Jetson Orin"), RTX, [PlannedBuild("tensorrt_rtx", ("8.6",))], "sm87"),
        ("auto", ("h100", "8.9", "b200"), RTX, [PlannedBuild("tensorrt_rtx", ("8.9",))], "sm90, sm100"),
        ("auto", ("sm86", "sm87"), ORIN, [PlannedBuild("tensorrt", ("8.7",))], "sm86"),
        ("tensorrt-rtx", ("sm86", "sm90"), RTX, [PlannedBuild("tensorrt_rtx", ("8.6",))], "sm90"),
        ("tensorrt", ("sm87", "sm90"), ORIN, [PlannedBuild("tensorrt", ("8.7",))], "sm90"),
    ],
)
def test_of_a_mixture_what_can_be_built_here_is_and_a_note_says_how_to_finish(
    choice: EngineChoice, gpu: tuple[str, ...], on: HostFacts, built: list[PlannedBuild], missed: str
) -> None:
    plan = plan_engines(choice, gpu, on)
    assert list(plan.builds) == built
    (note,) = plan.notes
    assert note.startswith(f"no engine was built for {missed}: ")
    assert "run `resnet-export build BUNDLE" in note or "pip install 'resnet-export[" in note


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
        plan_engines(choice, (device,), RTX)
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
        plan_engines("tensorrt", ("sm90",), ORIN)


@pytest.mark.parametrize(
    ("choice", "gpu"), [("tensorrt-rtx", ()), ("tensorrt", ()), ("tensorrt", ("sm87",)), ("auto", ("sm86",))]
)
def test_a_missing_package_is_named_with_its_install_line(choice: EngineChoice, gpu: tuple[str, ...]) -> None:
    with pytest.raises(DependencyError, match=r"pip install 'resnet-export\[tensorrt"):
        plan_engines(choice, gpu, host(gpu="8.7"))


def test_gpus_without_an_engine_are_a_contradiction() -> None:
    with pytest.raises(RequestError, match="--engine none"):
        plan_engines("none", ("sm86",), RTX)
