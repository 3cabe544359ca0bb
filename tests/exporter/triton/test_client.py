"""The gate and the labels of a running server, and what is said where there is none, or another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2 as pb

from resnet_export.exporter.cli.group import cli
from resnet_export.exporter.parity.check import check_parity
from resnet_export.exporter.triton.client import open_ensemble
from resnet_export.exporter.triton.repository import write_repository
from resnet_export.runtime import RequestError, open_session
from resnet_export.runtime.parity.spec import ParitySpec
from tests import parity_bundle, triton_server
from tests.tiny_bundle import ALL, FP32


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("bundle") / "tiny", ALL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, crop in enumerate(parity_bundle.crops(20, seed=5)):
        Image.fromarray(crop).resize((40, 30)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton_server.Server]:
    folder = tmp_path_factory.mktemp("triton")
    write_repository(bundle, folder / "models")
    with triton_server.running(folder / "models", folder / "server") as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def url(server: triton_server.Server, request: pytest.FixtureRequest) -> str:
    return f"{request.param}://{getattr(server, request.param)}"


# Without a server


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_does_not_answer_is_one_sentence_and_no_figure(
    bundle: Path, photos: Path, scheme: str
) -> None:
    nobody = f"{scheme}://127.0.0.1:{triton_server.free_ports(1)[0]}"
    for arguments in (("parity", bundle, "--triton", nobody), ("infer", "--triton", nobody, photos)):
        found = run(*arguments)
        assert found.exit_code == 2
        assert found.output.startswith(f"Error: the server {nobody} does not answer (")
        assert found.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["parity", "BUNDLE", "--triton", "localhost"], "'localhost' is no address of a server"),
        (["parity", "BUNDLE", "--triton", "ftp://a:1"], "'ftp://a:1' is no address of a server"),
        (
            ["parity", "BUNDLE", "--triton", "a:1", "--backend", "openvino"],
            "backends were given with a server",
        ),
        (["infer", "--triton", "a:1", "x.png", "--threads", "2"], "--threads was given with --triton"),
    ],
)
def test_wrong_words_are_refused(bundle: Path, arguments: list[str], sentence: str) -> None:
    found = run(*(bundle if argument == "BUNDLE" else argument for argument in arguments))
    assert found.exit_code == 2
    assert sentence in found.output


def test_a_server_in_the_spec_needs_its_runs(bundle: Path) -> None:
    from resnet_export.runtime.parity.check import run_parity

    with pytest.raises(RequestError, match="no runs of a server were given"):
        run_parity(bundle, ParitySpec(triton="http://localhost:8000"))


# With one


@pytest.mark.slow
def test_the_gate_gives_the_figures_of_this_host(bundle: Path, photos: Path, url: str) -> None:
    """The server's session runs what this host's does, so that every figure of its report is the same."""
    spec = ParitySpec(data=str(photos), artifacts=("fp32",), backends=("onnxruntime",))
    here = check_parity(bundle, spec).entries[0]
    report = check_parity(bundle, data=str(photos), triton=url)
    there = next(entry for entry in report.entries if entry.backend == "triton")
    assert report.exit_code == 0
    assert report.asked.triton == url
    assert there.provider == "tiny_python"
    assert there.version is not None
    assert there.version.startswith("triton 2.")
    assert f"answered by {url}, model tiny_python version 1" in there.notes
    assert not [note for note in there.notes if "memory" in note]  # images went through shared memory
    golden, mine = there.check("golden"), here.check("golden")
    assert golden is not None
    assert golden.comparison == mine.comparison
    data = there.check("data")
    assert data is not None
    assert data.comparison.figures.images == 20
    assert data.comparison.figures.relative_error in (0, None)


@pytest.mark.slow
def test_images_are_sent_where_memory_cannot_be_shared(
    bundle: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_export.exporter.triton.client._LOCAL", frozenset())
    assert check_parity(bundle, triton=url).exit_code == 0


@pytest.mark.slow
def test_labels_are_those_of_the_local_session(bundle: Path, photos: Path, url: str) -> None:
    files = sorted(photos.iterdir())
    with (
        open_session(bundle, artifact="fp32", backend="onnxruntime") as session,
        open_ensemble(url) as ensemble,
    ):
        expected = session.classify(files, top=3)
        found = [*ensemble.stream(files, top=3)]
    for row, wanted in zip(found, expected, strict=True):
        assert isinstance(row, list)
        assert [one.label for one in row] == [one.label for one in wanted]
        np.testing.assert_allclose(
            [one.probability for one in row], [one.probability for one in wanted], atol=1e-6
        )


@pytest.mark.slow
def test_every_output_of_the_ensemble_can_be_had_alone(server: triton_server.Server, photos: Path) -> None:
    import tritonclient.http as over_http

    data = np.array([[next(photos.iterdir()).read_bytes()]], np.object_)
    with over_http.InferenceServerClient(server.http) as client:
        for output in ("label", "probability", "index"):
            value = over_http.InferInput("image", [1, 1], "BYTES")
            value.set_data_from_numpy(data)
            found = client.infer("tiny", [value], outputs=[over_http.InferRequestedOutput(output)])
            assert found.as_numpy(output).shape == (1, 5)


@pytest.mark.slow
def test_the_command_counts_bad_images(photos: Path, url: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    found = run(
        "infer", "--triton", url, photos / "00.png", bad, tmp_path / "none.png", "--json", "--top", "2"
    )
    assert found.exit_code == 1
    assert "2 of 3 images failed" in found.stderr
    answer = json.loads(found.stdout)
    assert answer["choice"]["model"] == "tiny"
    assert [sorted(one) for one in answer["images"]] == [
        ["image", "predictions"],
        ["error", "image"],
        ["error", "image"],
    ]
    assert answer["images"][1]["error"].startswith(f"'{bad}' is not an image")
    assert "cannot be read" in answer["images"][2]["error"]


@pytest.mark.slow
def test_another_bundle_or_model_is_refused_before_any_figure(bundle: Path, tmp_path: Path, url: str) -> None:
    other = parity_bundle.write(tmp_path / "tiny", [FP32], trained=True)
    for arguments, sentence in (
        (("parity", other, "--triton", url), "serves tiny_python of bundle "),
        (("parity", other, "--triton", f"{url}/tiny_python"), "give the bundle that is served"),
        (("parity", bundle, "--triton", f"{url}/resnet50"), "has no model 'resnet50'"),
        (("parity", bundle, "--triton", f"{url}/tiny_labels"), "takes 'input' ['N', 3, 16, 16]"),
        (("parity", bundle, "--triton", url, "--artifact", "fp16"), "runs none of the artifacts fp16"),
        (("infer", "--triton", f"{url}/tiny_python", "x.png"), "has no model from image files to labels"),
        (("infer", "--triton", url, "x.png", "--top", "6"), "returns 5 labels, 6 were asked for"),
    ):
        found = run(*arguments)
        assert found.exit_code == 2
        assert sentence in found.output
        assert found.stdout == ""


@pytest.mark.slow
def test_a_model_that_names_no_bundle_is_not_believed(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models")
    file = tmp_path / "models" / "tiny_python" / "config.pbtxt"
    config = text_format.Parse(file.read_text(), pb.ModelConfig())
    config.parameters.clear()
    file.write_text(text_format.MessageToString(config))
    with triton_server.running(tmp_path / "models", tmp_path / "server") as server:
        found = run("parity", bundle, "--triton", f"http://{server.http}")
    assert found.exit_code == 2
    assert "serves tiny_python of a bundle that it does not name" in found.output


@pytest.mark.slow
def test_a_server_that_dies_in_between_is_an_entry_with_an_error(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models")
    with triton_server.running(tmp_path / "models", tmp_path / "server") as server:
        from resnet_export.exporter.triton.client import served_runs
        from resnet_export.runtime.parity.check import run_parity

        runs = served_runs(bundle, f"http://{server.http}")
        server.kill()
        report = run_parity(bundle, ParitySpec(triton="x"), served=runs)
    (entry,) = report.entries
    assert entry.error is not None
    assert entry.error.startswith("could not be opened: the server http://127.0.0.1")
    assert report.exit_code != 0
    assert isinstance(msgspec.json.encode(report), bytes)
