"""What README and docs tell people to type exists: commands parse, imports resolve, README's example runs."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from sklearn.datasets import load_sample_image

from resnet_export.exporter.cli import cli
from resnet_export.exporter.cli.group import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_IN_A_BLOCK = re.compile(r"^(?:    |\$ )(resnet-export .*)$", re.M)
_INLINE = re.compile(r"`(resnet-export [^`]*)`")
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ").replace("\\|", "|")
        for pattern in (_IN_A_BLOCK, _INLINE):
            for command in pattern.findall(text):
                yield page.name, command


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_every_command_has_the_options_that_are_written(page: str, command: str) -> None:
    words = [word for word in shlex.split(command.replace("'", '"'), comments=True) if word not in ("[", "]")]
    words = [word.strip("[]…,") for word in words[1:]]
    words = [word for word in words if word and word != "OPTIONS"]
    name = next((word for word in words if not word.startswith("-")), None)
    target: click.Command = cli
    if words and words[0] in COMMANDS:
        with click.Context(cli) as context:
            found = cli.get_command(context, words.pop(0))
        assert found is not None
        target = found
    elif words and not words[0].startswith("-"):
        pytest.fail(f"{page} has the command {name!r}, which is none")
    known = {flag for option in target.params for flag in (*option.opts, *option.secondary_opts)} | {
        "--help",
        "-h",
    }
    assert {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"} <= known


def snippets() -> Iterator[tuple[str, int, str]]:
    for page in PAGES:
        for number, code in enumerate(_PYTHON.findall(page.read_text())):
            yield page.name, number, code


@pytest.mark.parametrize(("page", "number", "code"), list(snippets()))
def test_every_name_that_a_snippet_imports_is_there(page: str, number: int, code: str) -> None:
    imports = [
        node
        for node in ast.walk(ast.parse(code))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnet_export"))
        or (isinstance(node, ast.Import) and node.names[0].name.startswith("resnet_export"))
    ]
    exec(compile(ast.Module(list(imports), []), page, "exec"), {})


def test_the_example_of_readme_runs(
    resnet18_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    shutil.copytree(resnet18_bundle, tmp_path / "build" / "resnet50")
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "china.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = _PYTHON.findall((ROOT / "README.md").read_text())
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all(re.match(r"\d+\.\d% ", line) for line in printed[:2])
    assert " on " in printed[2]
