"""The CI recipes: what their scripts do is run here for real, with a stand-in for each hosted service."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from resnet_export.exporter.cli.parity import command
from tests import parity_bundle
from tests.parity_bundle import crops, logits
from tests.tiny_bundle import FP16, FP32

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github/workflows/parity.yml"
GITLAB = ROOT / "ci/gitlab-parity.yml"

_GH = """#!{python}
import json, pathlib, sys
calls = pathlib.Path("gh.json")
known = json.loads(calls.read_text()) if calls.exists() else []
body = next((pathlib.Path(one.partition("@")[2]).read_text() for one in sys.argv if one.startswith("body=@")), "")
known.append([sys.argv[1:], body])
calls.write_text(json.dumps(known))
if "--jq" in sys.argv and {existing}:
    print("7\\t<!-- another bot's -->")
    print("12\\t<!-- resnet-export parity: parity -->")
"""


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    found: dict[Any, Any] = yaml.safe_load(GITHUB.read_text())
    found["on"] = found.pop(True)  # YAML 1.1 reads the key `on` as a boolean
    return found


@pytest.fixture(scope="module")
def steps(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in workflow["jobs"]["parity"]["steps"]}


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(GITLAB.read_text())[".resnet-export-parity"]
    return found


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with a sound and a broken bundle and labeled data; the scripts run in it."""
    parity_bundle.write(tmp_path / "bundle", [FP32, FP16], trained=True)
    parity_bundle.write(
        tmp_path / "broken", [FP32, FP16], graphs={"fp16": parity_bundle.graph(FP32, batch=4)}
    )
    images = crops(40, seed=5)
    np.savez(tmp_path / "data.npz", images=images, labels=logits(images).argmax(axis=1))
    return tmp_path


def environment(repository: Path, **variables: str) -> dict[str, str]:
    """The variables that a runner sets, with the project's command and stand-ins first on the path."""
    path = os.pathsep.join([str(repository / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, "HOME": str(repository), "LANG": "C.UTF-8", "REPORTS": "parity-reports"} | variables


def run(
    script: str, repository: Path, shell: str = "bash", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a step's script with the shell options that the service uses."""
    options = ["--noprofile", "--norc", "-eo", "pipefail"] if shell == "bash" else ["-e"]
    return subprocess.run(
        [shell, *options, "-c", script],
        cwd=repository,
        env=environment(repository, **variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def gate(
    steps: dict[str, dict[str, Any]], repository: Path, **inputs: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    names = dict.fromkeys(steps["Check parity"]["env"], "")
    names |= {"EXTRAS": "cpu", "BUNDLE": "bundle", "BACKENDS": "onnxruntime"}
    output = repository / "output"
    done = run(steps["Check parity"]["run"], repository, GITHUB_OUTPUT=str(output), **(names | inputs))
    return done, output.read_text() if output.exists() else ""


# GitHub


def test_the_gate_step_writes_every_report_and_remembers_the_status(
    steps: dict[str, dict[str, Any]], repository: Path
) -> None:
    done, output = gate(
        steps,
        repository,
        DATA="data.npz",
        MAX_DROP="0.5",
        MIN_AGREEMENT="90",
        MIN_ACCURACY="10",
        LIMIT="30",
        ARTIFACTS="fp32 fp16",
        BACKENDS="onnxruntime",
    )
    assert done.returncode == 0, done.stderr
    assert output == "status=0\n"
    reports = repository / "parity-reports"
    report = json.loads((reports / "parity.json").read_bytes())
    assert report["asked"]["max_drop"] == 0.5
    assert report["asked"]["min_agreement"] == 90
    assert report["asked"]["min_accuracy"] == 10
    assert report["asked"]["artifacts"] == ["fp32", "fp16"]
    assert ElementTree.parse(reports / "parity.xml").getroot().tag == "testsuites"
    assert "PASSED" in (reports / "parity.md").read_text()


def test_a_failure_passes_the_gate_step_and_fails_the_last(
    steps: dict[str, dict[str, Any]], repository: Path
) -> None:
    done, output = gate(steps, repository, BUNDLE="broken")
    assert (done.returncode, output) == (0, "status=1\n")
    summary = repository / "summary.md"
    shown = run(steps["Show the summary"]["run"], repository, GITHUB_STEP_SUMMARY=str(summary))
    assert shown.returncode == 0
    assert "FAILED" in summary.read_text()
    assert run(steps["Give the verdict"]["run"], repository, STATUS="1").returncode == 1
    assert run(steps["Give the verdict"]["run"], repository, STATUS="0").returncode == 0
    # The gate never ran, because a step before it failed.
    assert run(steps["Give the verdict"]["run"], repository, STATUS="").returncode == 2


def test_inputs_cannot_run_code(steps: dict[str, dict[str, Any]], repository: Path) -> None:
    hostile = "$(touch pwned) `touch pwned`; touch pwned #"
    done, output = gate(steps, repository, BUNDLE=hostile, DATA=hostile, ARTIFACTS=hostile, TOLERANCE=hostile)
    assert done.returncode == 0
    assert output == "status=2\n"
    assert not list(repository.glob("**/pwned"))


def test_no_input_stands_in_the_text_of_a_script(workflow: dict[str, Any]) -> None:
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), step["name"]


def test_every_input_is_used_and_every_used_input_is_declared(workflow: dict[str, Any]) -> None:
    declared = set(workflow["on"]["workflow_call"]["inputs"])
    assert set(re.findall(r"inputs\.([\w-]+)", GITHUB.read_text())) == declared


def test_the_workflow_asks_for_no_more_than_it_needs(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] == {}
    assert workflow["jobs"]["parity"]["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_actions_are_pinned_to_a_major_version(steps: dict[str, dict[str, Any]]) -> None:
    used = [step["uses"] for step in steps.values() if "uses" in step]
    assert len(used) >= 5
    assert all(re.fullmatch(r"actions/[\w/-]+@v\d+", action) for action in used)


def test_the_reports_are_kept_and_shown_before_the_job_fails(steps: dict[str, dict[str, Any]]) -> None:
    names = list(steps)
    assert names[-1] == "Give the verdict"
    for name in names[names.index("Check parity") + 1 :]:
        assert "always()" in steps[name]["if"], name


@pytest.mark.parametrize(("existing", "method"), [(False, "POST"), (True, "PATCH")])
def test_one_comment_is_written_and_then_kept_up_to_date(
    steps: dict[str, dict[str, Any]], repository: Path, existing: bool, method: str
) -> None:
    (repository / "bin").mkdir()
    stand_in = repository / "bin" / "gh"
    stand_in.write_text(_GH.format(python=sys.executable, existing=existing))
    stand_in.chmod(0o755)
    (repository / "parity-reports").mkdir()
    (repository / "parity-reports" / "parity.md").write_text("### Parity\n")
    done = run(
        steps["Comment on the pull request"]["run"],
        repository,
        GITHUB_REPOSITORY="o/r",
        NAME="parity",
        NUMBER="3",
        STATUS="0",
        RUN="https://ci.example/1",
    )
    assert done.returncode == 0, done.stderr
    (_, _), (arguments, body) = json.loads((repository / "gh.json").read_text())
    assert arguments[:3] == ["api", "--method", method]
    assert arguments[3] == ("repos/o/r/issues/comments/12" if existing else "repos/o/r/issues/3/comments")
    assert body.startswith("<!-- resnet-export parity: parity -->\n### Parity\n")
    assert "https://ci.example/1" in body


def test_a_bundle_from_an_address_is_unpacked_only_with_its_hash(
    steps: dict[str, dict[str, Any]], repository: Path
) -> None:
    archive = repository / "bundle.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for path in (repository / "bundle").iterdir():
            file.add(path, path.name)
    (repository / "bin").mkdir()
    curl = repository / "bin" / "curl"  # the last argument is the address, the one after --output the file
    curl.write_text('#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\ncp "' + str(archive) + '" "$2"\n')
    curl.chmod(0o755)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    script = steps["Restore the bundle from an address"]["run"]
    variables = {"BUNDLE": "restored", "BUNDLE_URL": "https://files.example/bundle.tar.gz"}
    assert run(script, repository, BUNDLE_SHA256="0" * 64, **variables).returncode != 0
    assert run(script, repository, BUNDLE_SHA256="", **variables).returncode != 0
    assert not (repository / "restored").exists()
    assert run(script, repository, BUNDLE_SHA256=sha256, **variables).returncode == 0
    assert (repository / "restored" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("extras", "version", "requirement", "installed"),
    [
        ("cpu,report", "", "", "resnet-export[cpu,report]"),
        ("cpu", "0.1.0", "", "resnet-export[cpu]==0.1.0"),
        ("cpu", "", "./here[cpu]", "./here[cpu]"),
    ],
)
def test_what_is_installed_is_put_together_from_extras_and_version(
    steps: dict[str, dict[str, Any]],
    repository: Path,
    extras: str,
    version: str,
    requirement: str,
    installed: str,
) -> None:
    (repository / "bin").mkdir()
    python = repository / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    done = run(
        steps["Install resnet-export"]["run"],
        repository,
        EXTRAS=extras,
        VERSION=version,
        REQUIREMENT=requirement,
    )
    assert done.stdout.splitlines() == ["-m", "pip", "install", "--", installed]


# GitLab


def gitlab(template: dict[str, Any], repository: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    known = {**template["variables"], "PARITY_EXTRAS": "cpu", "PARITY_BACKENDS": "onnxruntime"} | variables
    return run("\n".join(template["script"]), repository, "sh", **known)


def test_the_gitlab_job_ends_as_the_gate_does(template: dict[str, Any], repository: Path) -> None:
    done = gitlab(
        template, repository, PARITY_DATA="data.npz", PARITY_MAX_DROP="0.5", PARITY_ARTIFACTS="fp32 fp16"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((repository / "parity-reports" / "parity.json").read_bytes())
    assert report["asked"]["artifacts"] == ["fp32", "fp16"]
    assert gitlab(template, repository, PARITY_BUNDLE="broken").returncode == 1
    assert gitlab(template, repository, PARITY_BUNDLE="nowhere").returncode == 2


def test_the_gitlab_job_keeps_its_reports_also_when_it_fails(template: dict[str, Any]) -> None:
    assert template["artifacts"]["when"] == "always"
    assert template["artifacts"]["reports"]["junit"] == "$PARITY_REPORTS/parity.xml"
    assert "$PARITY_REPORTS/parity.xml" in template["script"][0]


class _Notes(http.server.BaseHTTPRequestHandler):
    """As much of GitLab's notes API as the template uses, two pages of notes included."""

    notes: list[dict[str, Any]]
    calls: list[tuple[str, str, str]]

    def _answer(self, content: object, following: str = "") -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("X-Next-Page", following)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        first = self.path.endswith("&page=1")
        self._answer([{"id": 1, "body": "other"}] if first else self.notes, "2" if first else "")

    def _write(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]
        self.calls.append((self.command, self.path, body))
        assert self.headers["PRIVATE-TOKEN"] == "secret"
        self._answer({})

    do_POST = do_PUT = _write

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    _Notes.notes, _Notes.calls = [], []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Notes)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def test_one_note_of_the_merge_request_is_kept_up_to_date(
    template: dict[str, Any], repository: Path, server: http.server.ThreadingHTTPServer
) -> None:
    (repository / "parity-reports").mkdir()
    (repository / "parity-reports" / "parity.md").write_text("### Parity\n")
    variables = {
        "PARITY_REPORTS": "parity-reports",
        "PARITY_TOKEN": "secret",
        "CI_MERGE_REQUEST_IID": "3",
        "CI_PROJECT_ID": "9",
        "CI_API_V4_URL": f"http://127.0.0.1:{server.server_port}/api/v4",
        "CI_JOB_NAME": "parity",
        "CI_JOB_URL": "https://ci.example/1",
    }
    script = "\n".join(template["after_script"])
    assert run(script, repository, "sh", **variables).returncode == 0
    _Notes.notes.append({"id": 5, "body": "<!-- resnet-export parity: parity -->\nold"})
    done = run(script, repository, "sh", **variables)
    assert done.returncode == 0, done.stderr
    (posted, at, body), (put, where, _) = _Notes.calls
    assert (posted, put) == ("POST", "PUT")
    assert (at, where) == tuple(f"/api/v4/projects/9/merge_requests/3/notes{tail}" for tail in ("", "/5"))
    assert body.startswith("<!-- resnet-export parity: parity -->\n### Parity\n")
    assert run(script, repository, "sh", **(variables | {"PARITY_TOKEN": ""})).returncode == 0
    assert len(_Notes.calls) == 2


# Both


def test_every_option_in_the_recipes_is_one_of_the_command() -> None:
    known = {option for parameter in command.params for option in parameter.opts}
    for path in (GITHUB, GITLAB):
        script = path.read_text()
        lines = [
            line
            for line in script.splitlines()
            if "arguments" in line
            or "set --" in line
            or "$PARITY_REPORTS/" in line
            or "$REPORTS/parity" in line
        ]
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
        assert {"--json", "--junit", "--markdown", "--max-drop"} <= used
        assert used <= known, path.name
