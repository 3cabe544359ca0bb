"""Writing a bundle: what is refused, what is kept, and what stands there afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from resnet_export.exporter.bundle import atomic_replace as replace_module
from resnet_export.exporter.bundle import staging as bundle_module
from resnet_export.exporter.bundle import staging_folder as folder_module
from resnet_export.exporter.bundle.staging import add_artifacts, check_output, extending, staging
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    read_manifest,
    verify_bundle,
)
from resnet_export.runtime.errors import BundleError, ExportError, IntegrityError, RequestError
from tests import sample_bundle
from tests.sample_bundle import version_of


@pytest.fixture(params=["exchange", "two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to replace a bundle: the atomic exchange, and what stands in where it does not exist."""
    if request.param == "two steps":
        monkeypatch.setattr(replace_module, "exchange", lambda *_: False)
    return str(request.param)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def only(folder: Path, *names: str) -> bool:
    return sorted(p.name for p in folder.iterdir()) == sorted(names)


# --- what stands there afterwards ------------------------------------------------------------------------


def test_a_new_bundle_holds_its_files_and_nothing_else_remains(tmp_path: Path) -> None:
    bundle = sample_bundle.write(tmp_path / "out", 1, force=False)
    found = tree(tmp_path / "out")
    assert found.pop(MANIFEST_NAME)
    assert found == sample_bundle.contents(1)
    assert verify_bundle(bundle.path) == bundle.manifest
    assert only(tmp_path, "out")


def test_the_bundle_that_is_returned_says_where_it_is_and_what_is_in_it(tmp_path: Path) -> None:
    bundle = sample_bundle.write(tmp_path / "out", 1)
    assert bundle.path == tmp_path / "out"
    assert bundle.manifest == read_manifest(tmp_path / "out")


def test_a_bundle_is_replaced_with_force_and_nothing_of_the_old_one_remains(tmp_path: Path, way: str) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    sample_bundle.write(tmp_path / "out", 2)
    assert version_of(verify_bundle(tmp_path / "out")) == 2
    found = tree(tmp_path / "out")
    assert found.pop(MANIFEST_NAME)
    assert found == sample_bundle.contents(2)
    assert only(tmp_path, "out")


def test_the_exchange_is_really_used_where_it_exists(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "inside").touch()
    if not replace_module.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this kernel or file system has no RENAME_EXCHANGE")
    assert (tmp_path / "a" / "inside").exists()
    with pytest.raises(FileNotFoundError):
        replace_module.exchange(tmp_path / "a", tmp_path / "missing")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_a_system_without_the_exchange_is_told_by_its_error_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    monkeypatch.setattr(replace_module.ctypes, "get_errno", lambda: code)
    monkeypatch.setattr(
        replace_module.ctypes, "CDLL", lambda *_, **__: type("Libc", (), {"renameat2": lambda *_: -1})()
    )
    sample_bundle.write(tmp_path / "out", 2)
    assert version_of(verify_bundle(tmp_path / "out")) == 2
    assert only(tmp_path, "out")


def test_a_failed_exchange_leaves_the_old_bundle_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    monkeypatch.setattr(replace_module.ctypes, "get_errno", lambda: errno.EIO)
    monkeypatch.setattr(
        replace_module.ctypes, "CDLL", lambda *_, **__: type("Libc", (), {"renameat2": lambda *_: -1})()
    )
    with pytest.raises(RequestError, match="Input/output error"):
        sample_bundle.write(tmp_path / "out", 2)
    assert version_of(verify_bundle(tmp_path / "out")) == 1
    assert only(tmp_path, "out")


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_of_the_two_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    monkeypatch.setattr(replace_module, "exchange", lambda *_: False)
    calls = []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        os.rename(self, target)  # noqa: PTH104
        return target

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(RequestError, match="Input/output error"):
        sample_bundle.write(tmp_path / "out", 2)
    monkeypatch.undo()
    assert version_of(verify_bundle(tmp_path / "out")) == 1
    assert only(tmp_path, "out")


def test_an_export_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def export() -> NoReturn:
        with staging(tmp_path / "out") as stage:
            stage.write("model.onnx", b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export()
    assert only(tmp_path)
    with staging(tmp_path / "out"):
        pass
    assert only(tmp_path)


def test_an_error_of_the_export_itself_passes_through_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the user's"), staging(tmp_path / "out"):
        raise FileNotFoundError("the user's")


def test_every_file_and_folder_is_flushed_before_the_bundle_is_put_into_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    flushed: set[int] = set()
    checked = []
    fsync, replace = os.fsync, bundle_module.replace

    def recording_fsync(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def checking_replace(new: Path, home: Path, old: Path) -> None:
        everything = {p.stat().st_ino for p in (new, *new.rglob("*"))}
        assert everything <= flushed
        checked.append(new)
        flushed.clear()
        replace(new, home, old)
        assert {new.parent.stat().st_ino, home.parent.stat().st_ino} <= flushed

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(bundle_module, "replace", checking_replace)
    sample_bundle.write(tmp_path / "out", 2)
    assert checked


def test_a_bundle_has_the_permissions_of_the_one_it_replaces_and_else_the_usual_ones(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        sample_bundle.write(tmp_path / "out", 1)
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
        assert stat.S_IMODE((tmp_path / "out" / "model.onnx").stat().st_mode) == 0o640
        (tmp_path / "out").chmod(0o775)
        sample_bundle.write(tmp_path / "out", 2)
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o775
    finally:
        os.umask(mask)


# --- where the output may be -----------------------------------------------------------------------------


def test_relative_paths_and_trailing_slashes_mean_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for version, out in enumerate(["out", "out/", "./out", "x/../out"]):
        with staging(out, force=True) as stage:
            sample_bundle.fill(stage, version)
        assert version_of(verify_bundle(tmp_path / "out")) == version
    assert only(tmp_path, "out")


def test_a_link_stays_a_link_and_the_folder_behind_it_is_replaced(tmp_path: Path, way: str) -> None:
    (tmp_path / "real").mkdir()
    sample_bundle.write(tmp_path / "real" / "v1", 1)
    (tmp_path / "link").symlink_to("real/v1")
    sample_bundle.write(tmp_path / "link", 2)
    assert (tmp_path / "link").is_symlink()
    assert version_of(verify_bundle(tmp_path / "real" / "v1")) == 2
    assert only(tmp_path, "link", "real")
    assert only(tmp_path / "real", "v1")


def test_a_link_to_nothing_gets_its_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    sample_bundle.write(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert version_of(verify_bundle(tmp_path / "target")) == 1


def test_an_empty_folder_needs_no_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    sample_bundle.write(tmp_path / "out", 1, force=False)
    assert version_of(verify_bundle(tmp_path / "out")) == 1


def test_names_with_spaces_and_other_scripts_are_fine(tmp_path: Path) -> None:
    sample_bundle.write(tmp_path / "my résumé 模型", 1)
    sample_bundle.write(tmp_path / "my résumé 模型", 2)
    assert version_of(verify_bundle(tmp_path / "my résumé 模型")) == 2


def _file(tmp: Path) -> Path:
    (tmp / "out").write_bytes(b"mine")
    return tmp / "out"


def _foreign(tmp: Path) -> Path:
    (tmp / "out").mkdir()
    (tmp / "out" / "thesis.tex").write_bytes(b"mine")
    return tmp / "out"


def _other_manifest(tmp: Path) -> Path:
    (tmp / "out").mkdir()
    (tmp / "out" / MANIFEST_NAME).write_bytes(b'{"manifest_version": 3, "name": "an extension"}')
    return tmp / "out"


def _newer(tmp: Path) -> Path:
    (tmp / "out").mkdir()
    (tmp / "out" / MANIFEST_NAME).write_bytes(b'{"schema": 99}')
    return tmp / "out"


def _loop(tmp: Path) -> Path:
    (tmp / "out").symlink_to("out")
    return tmp / "out"


def _linked_foreign(tmp: Path) -> Path:
    _foreign(tmp).rename(tmp / "real")
    (tmp / "out").symlink_to("real")
    return tmp / "out"


def _staging_is_foreign(tmp: Path) -> Path:
    (tmp / ".out.staging").mkdir()
    (tmp / ".out.staging" / "mine").write_bytes(b"mine")
    return tmp / "out"


def _staging_is_a_link(tmp: Path) -> Path:
    _foreign(tmp).rename(tmp / "real")
    (tmp / ".out.staging").symlink_to("real")
    return tmp / "out"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (_file, "is a file, expected a folder or nothing"),
    "a folder that is no bundle": (
        _foreign,
        "no bundle, so not even --force replaces it .it has no manifest",
    ),
    "another program's manifest": (_other_manifest, "no bundle, so not even --force"),
    "a bundle of a newer version": (_newer, "has schema 99, this version reads schema 1"),
    "a link to itself": (_loop, "is a file, expected a folder"),
    "a link to a folder that is no bundle": (_linked_foreign, "no bundle"),
    "a missing parent": (lambda tmp: tmp / "missing" / "out", r"missing, in which .* is missing; create it"),
    "a parent that is a file": (lambda tmp: _file(tmp) / "below", "is missing; create it"),
    "a name that is too long": (lambda tmp: tmp / ("x" * 254), "cannot be written .File name too long"),
    "a NUL in the name": (lambda tmp: tmp / "a\0b", "cannot be looked up .embedded null byte"),
    "the root": (lambda tmp: Path("/"), "is the current folder or holds it"),
    "a pseudo file system": (lambda tmp: Path("/proc/resnet50"), "cannot be written"),
    "a mount point": (lambda tmp: Path("/proc"), "mount point"),
    "a staging folder that is the user's": (_staging_is_foreign, "is not from an export"),
    "a staging folder that is a link": (_staging_is_a_link, "is a link"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_output_that_cannot_be_is_refused_at_once_and_left_alone(tmp_path: Path, name: str) -> None:
    make, sentence = REFUSED[name]
    if name in ("a pseudo file system", "a mount point") and not Path("/proc/self").exists():
        pytest.skip("no /proc on this system")
    out = make(tmp_path)
    before = tree(tmp_path), sorted(tmp_path.rglob("*"))
    for force in (False, True):
        with pytest.raises(RequestError, match=sentence) as caught:
            check_output(out, force=force)
        assert "\n" not in str(caught.value)
        with pytest.raises(RequestError, match=sentence), staging(out, force=force):
            pytest.fail("the work began")
    assert (tree(tmp_path), sorted(tmp_path.rglob("*"))) == before


def test_a_bundle_is_refused_without_force_and_accepted_with_it(tmp_path: Path) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    with pytest.raises(RequestError, match="holds a bundle already; add --force"):
        check_output(tmp_path / "out")
    check_output(tmp_path / "out", force=True)
    assert only(tmp_path, "out")


@pytest.mark.parametrize("out", [".", "", "..", "../out", "{tmp}/out", "{tmp}"])
def test_the_current_folder_is_not_pulled_away_from_under_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(RequestError, match="is the current folder or holds it"):
        check_output(out.format(tmp=tmp_path), force=True)


def test_too_little_space_is_found_before_the_work_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=31_400_000))
    with pytest.raises(RequestError, match=r"has 31\.4 MB free, the bundle needs 1,234\.5 MB; free space"):
        check_output(tmp_path / "out", bytes_needed=1_234_500_000)
    check_output(tmp_path / "out", bytes_needed=31_400_000)
    assert only(tmp_path)


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_bundle.write(tmp_path / "out", 1)

    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RequestError, match=r"model.onnx failed \(No space left on device, .* MB are free\)"):
        sample_bundle.write(tmp_path / "out", 2)
    monkeypatch.undo()
    assert version_of(verify_bundle(tmp_path / "out")) == 1
    assert only(tmp_path, "out")


@pytest.fixture
def somebody() -> Iterator[Path]:
    """A folder that everybody can reach, with this process acting as an unprivileged user while it lasts."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as somebody else")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_an_unwritable_parent_is_found_before_the_work(somebody: Path) -> None:
    os.seteuid(65534)
    with pytest.raises(RequestError, match=r"cannot be written \(Permission denied\)"):
        check_output(somebody / "out")


def test_an_unwritable_bundle_is_found_before_the_work(somebody: Path) -> None:
    sample_bundle.write(somebody / "out", 1)
    somebody.chmod(0o777)
    os.seteuid(65534)
    with pytest.raises(RequestError, match="this user may not replace"):
        check_output(somebody / "out", force=True)


def test_a_folder_that_the_sticky_bit_pins_is_found_before_the_work(somebody: Path) -> None:
    sample_bundle.write(somebody / "out", 1)
    (somebody / "out").chmod(0o777)
    somebody.chmod(0o1777)
    os.seteuid(65534)
    with pytest.raises(RequestError, match="this user may not replace"):
        check_output(somebody / "out", force=True)


def test_a_reader_that_may_not_rename_still_reads_a_bundle_whose_replacement_was_cut_off(
    somebody: Path,
) -> None:
    sample_bundle.write(somebody / "out", 1)
    cut_off_between_the_renames(somebody / "out", 2)
    os.seteuid(65534)
    assert version_of(verify_bundle(somebody / "out")) == 2
    assert not (somebody / "out").exists()
    with pytest.raises(RequestError, match=r"cannot be written \(Permission denied\)"):
        check_output(somebody / "out", force=True)
    os.seteuid(0)
    assert version_of(verify_bundle(somebody / "out")) == 2
    assert (somebody / "out").exists()


# --- the user's own files --------------------------------------------------------------------------------


def test_files_of_the_user_in_an_old_bundle_live_on_in_the_new_one(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    (out / "notes.md").write_text("keep me")
    (out / "engines" / "mine.txt").write_text("me too")
    (out / "data" / "deep" / "er").mkdir(parents=True)
    (out / "data" / "deep" / "x.bin").write_bytes(b"and me")
    (out / "latest").symlink_to("model.onnx")
    (out / "gone").symlink_to("nowhere")
    os.mkfifo(out / "pipe")
    sample_bundle.write(out, 2)
    assert version_of(verify_bundle(out)) == 2
    assert (out / "notes.md").read_text() == "keep me"
    assert (out / "engines" / "mine.txt").read_text() == "me too"
    assert (out / "data" / "deep" / "x.bin").read_bytes() == b"and me"
    assert (out / "data" / "deep" / "er").is_dir()
    assert (out / "latest").readlink() == Path("model.onnx")
    assert (out / "gone").readlink() == Path("nowhere")
    assert (out / "pipe").is_fifo()
    assert only(tmp_path, "out")


def test_a_file_of_the_user_whose_name_the_new_bundle_needs_is_kept_under_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    with extending(out) as stage:
        assert stage.base is not None
        stage.commit(msgspec.structs.replace(stage.base, artifacts=stage.base.artifacts[:1], files=()))
    assert not (out / "model.fp16.onnx").exists()
    (out / "model.fp16.onnx").write_bytes(b"the user's")
    sample_bundle.write(out, 2)
    assert version_of(verify_bundle(out)) == 2
    assert (out / "model.fp16.onnx.kept").read_bytes() == b"the user's"


def test_user_files_are_carried_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    (out / "notes.md").write_text("keep me")
    monkeypatch.setattr(os, "link", refuse)
    sample_bundle.write(out, 2)
    assert (out / "notes.md").read_text() == "keep me"
    os.mkfifo(out / "pipe")
    with pytest.raises(RequestError, match="named pipe"):
        sample_bundle.write(out, 3)
    assert version_of(verify_bundle(out)) == 2


def test_what_appears_at_the_output_during_the_work_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(out, force=True) as stage:
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
        with pytest.raises(RequestError, match="no bundle"):
            sample_bundle.fill(stage, 1)
    assert only(tmp_path, "out")
    assert (out / "thesis.tex").read_text() == "mine"


# --- one writer at a time --------------------------------------------------------------------------------


def test_a_second_export_to_the_same_place_is_refused_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("out")
    with staging(tmp_path / "out") as stage:
        stage.write("model.onnx", b"first")
        for other in ("out", "link"):
            with pytest.raises(RequestError, match="another process is writing this bundle"):
                check_output(tmp_path / other, force=True)
        check_output(tmp_path / "elsewhere")
        sample_bundle.fill(stage, 1)
    assert version_of(verify_bundle(tmp_path / "out")) == 1
    assert only(tmp_path, "link", "out")


# --- what may be committed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["../x", "/x", "a\\b", ".hidden", "", "a//b", "x\n", "sp ace", "a/../b", "x" * 201]
)
def test_a_name_that_no_bundle_may_hold_is_not_written(tmp_path: Path, file: str) -> None:
    with staging(tmp_path / "out") as stage, pytest.raises(ExportError, match="can be called"):
        stage.write(file, b"x")
    assert only(tmp_path)


def test_what_is_written_is_hashed_in_one_piece_or_in_many(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    with staging(tmp_path / "out") as stage:
        whole = stage.write("whole", data)
        pieces = stage.write("pieces", (memoryview(data)[i : i + 777] for i in range(0, len(data), 777)))
    assert whole.sha256 == pieces.sha256 == hashlib.sha256(data).hexdigest()
    assert whole.bytes == pieces.bytes == 100_000


def test_a_manifest_that_names_what_was_not_written_is_not_committed(tmp_path: Path) -> None:
    files = sample_bundle.contents(1)
    with staging(tmp_path / "out") as stage:
        for name in list(files)[1:]:
            stage.write(name, files[name])
        with pytest.raises(ExportError, match=r"'model\.onnx', which was not written"):
            stage.commit(sample_bundle.manifest(1, files))
        stage.write("model.onnx", b"something else")
        with pytest.raises(ExportError, match=r"'model.onnx' has 2,000 bytes .* but 14 bytes"):
            stage.commit(sample_bundle.manifest(1, files))
        stage.write("model.onnx", files["model.onnx"])
        stage.commit(sample_bundle.manifest(1, files))
        with pytest.raises(RuntimeError, match="is committed"):
            stage.write("model.onnx", b"late")
    assert version_of(verify_bundle(tmp_path / "out")) == 1


def test_a_manifest_that_contradicts_itself_is_not_committed(tmp_path: Path) -> None:
    files = sample_bundle.contents(1)
    manifest = msgspec.structs.replace(sample_bundle.manifest(1, files), labels=("one",))
    with staging(tmp_path / "out") as stage:
        for name, data in files.items():
            stage.write(name, data)
        with pytest.raises(ExportError, match=r"the manifest of the new bundle is wrong: .* 1 labels for 5"):
            stage.commit(manifest)
    assert only(tmp_path)


def test_files_that_no_artifact_names_are_listed_with_their_hashes(tmp_path: Path) -> None:
    files = sample_bundle.contents(1)
    with staging(tmp_path / "out") as stage:
        for name, data in files.items():
            stage.write(name, data)
        stage.write("report.md", b"# Report\n")
        bundle = stage.commit(sample_bundle.manifest(1, files))
    assert [file.file for file in bundle.manifest.files] == [
        "engines/rtx.layers.json",
        "report.json",
        "report.md",
    ]
    verify_bundle(tmp_path / "out")


def test_terminal_colours_in_a_message_of_another_library_do_not_get_into_the_manifest(
    tmp_path: Path,
) -> None:
    files = sample_bundle.contents(1)
    base = sample_bundle.manifest(1, files)
    notice = "dynamo failed:\n\x1b[96mstep 2/3\x1b[0m\a ✅"
    provenance = msgspec.structs.replace(base.provenance, notices=(notice,))
    with staging(tmp_path / "out") as stage:
        for name, data in files.items():
            stage.write(name, data)
        bundle = stage.commit(msgspec.structs.replace(base, provenance=provenance))
    assert bundle.manifest.provenance.notices == ("dynamo failed:\nstep 2/3 ✅",)


def test_a_draft_can_be_opened_before_it_is_committed_and_changed_afterwards(tmp_path: Path) -> None:
    files = sample_bundle.contents(1)
    with staging(tmp_path / "out") as stage:
        for name, data in files.items():
            stage.write(name, data)
        folder = stage.preview(sample_bundle.manifest(1, files))
        assert version_of(verify_bundle(folder)) == 1
        assert not (tmp_path / "out").exists()
        stage.write("report.md", b"# Checked\n")
        stage.commit(sample_bundle.manifest(1, files))
    assert verify_bundle(tmp_path / "out").files[-1].file == "report.md"


# --- adding to a bundle ----------------------------------------------------------------------------------


def _engine(name: str, data: bytes, source_sha256: str) -> Artifact:
    base = sample_bundle.manifest(1).artifact("rtx-fp16")
    assert base.engine is not None
    return msgspec.structs.replace(
        base,
        name=name,
        file=f"engines/{name}.engine",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        engine=msgspec.structs.replace(
            base.engine, layers=f"engines/{name}.layers.json", source_sha256=source_sha256
        ),
    )


def test_an_engine_is_added_and_everything_else_stays(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    (out / "notes.md").write_text("keep me")
    before, old = tree(out), read_manifest(out)
    engine = _engine("rtx-sm120", b"engine", old.artifact("fp16").sha256)
    bundle = add_artifacts(out, [(engine, b"engine")], {"engines/rtx-sm120.layers.json": b"[]"})
    assert verify_bundle(out) == bundle.manifest
    assert bundle.manifest.artifacts == (*old.artifacts, engine)
    after = tree(out)
    assert after.pop("engines/rtx-sm120.engine") == b"engine"
    assert after.pop("engines/rtx-sm120.layers.json") == b"[]"
    assert after.pop(MANIFEST_NAME) != before.pop(MANIFEST_NAME)
    assert after == before
    assert only(tmp_path, "out")


def test_an_engine_is_built_again_without_touching_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    old = read_manifest(out).artifact("rtx-fp16")
    data = b"built again"
    new = msgspec.structs.replace(old, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with (out / old.file).open("rb") as held:  # as a running session may hold it
        add_artifacts(out, [(new, data)])
        assert held.read() == sample_bundle.contents(1)[old.file]
    assert (out / old.file).read_bytes() == data
    assert len(verify_bundle(out).artifacts) == 3


def test_what_a_new_manifest_no_longer_names_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    with extending(out) as stage:
        assert stage.base is not None
        graphs = tuple(artifact for artifact in stage.base.artifacts if artifact.kind == "onnx")
        stage.commit(msgspec.structs.replace(stage.base, artifacts=graphs, files=()))
    verify_bundle(out)
    assert sorted(tree(out)) == ["golden.npz", MANIFEST_NAME, "model.fp16.onnx", "model.onnx"]


def test_the_manifest_alone_can_be_brought_up_to_date(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    with extending(out) as stage:
        assert stage.base is not None
        artifacts = tuple(msgspec.structs.replace(a, parity=()) for a in stage.base.artifacts)
        stage.commit(msgspec.structs.replace(stage.base, artifacts=artifacts))
    assert not any(artifact.parity for artifact in verify_bundle(out).artifacts)


def test_a_build_that_fails_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    before = tree(out)

    def build() -> NoReturn:
        with extending(out) as stage:
            stage.write("engines/rtx.engine", b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    with pytest.raises(ExportError, match=r"'engines/rtx\.engine' has"):
        add_artifacts(out, [(read_manifest(out).artifact("rtx-fp16"), b"not what the artifact says")])
    assert tree(out) == before
    assert only(tmp_path, "out")


def test_a_damaged_bundle_is_found_before_an_engine_is_built_for_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample_bundle.write(out, 1)
    (out / "golden.npz").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match=r"golden\.npz"), extending(out):
        pytest.fail("the work began")
    assert only(tmp_path, "out")


def test_nothing_is_added_to_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"), extending(tmp_path / "none"):
        pytest.fail("the work began")
    assert only(tmp_path)


# --- after a crash ---------------------------------------------------------------------------------------


class Died(BaseException):
    """Stands for the end of the process."""


def cut_off_between_the_renames(out: Path, version: int, *, death: bool = True) -> None:
    """Die between the two renames that put `version` at `out`; without `death`, be interrupted there."""
    calls = []
    rename = Path.rename

    def second_never_happens(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise Died
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replace_module, "exchange", lambda *_: False)
        patch.setattr(Path, "rename", second_never_happens)
        if death:  # then what stands in a `finally` does not run
            patch.setattr(folder_module, "_sweep", lambda *_: None)
        with pytest.raises(Died):
            sample_bundle.write(out, version)


def test_an_interrupt_between_the_renames_leaves_the_new_bundle(tmp_path: Path) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    cut_off_between_the_renames(tmp_path / "out", 2, death=False)
    assert only(tmp_path, "out")
    assert version_of(verify_bundle(tmp_path / "out")) == 2


def test_the_next_reader_completes_a_replacement_that_was_cut_off(tmp_path: Path) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    cut_off_between_the_renames(tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()
    assert version_of(verify_bundle(tmp_path / "out")) == 2
    assert (tmp_path / "out").is_dir()


def test_the_next_writer_completes_it_too_and_leaves_no_litter_even_when_it_is_refused(
    tmp_path: Path,
) -> None:
    sample_bundle.write(tmp_path / "out", 1)
    cut_off_between_the_renames(tmp_path / "out", 2)
    with pytest.raises(RequestError, match="holds a bundle already"):
        check_output(tmp_path / "out")
    assert only(tmp_path, "out")
    assert version_of(verify_bundle(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    "journal",
    [b"", b"{", b'{"new": "../elsewhere"}', b'{"new": "new-0123456789abcdef"}', b'{"new": 1}', b"[" * 4000],
)
def test_a_journal_that_leads_nowhere_is_no_bundle(tmp_path: Path, journal: bytes) -> None:
    sample_bundle.write(tmp_path / "elsewhere", 1)
    (tmp_path / ".out.staging").mkdir()
    (tmp_path / ".out.staging" / "journal.json").write_bytes(journal)
    with pytest.raises(BundleError, match="is not a bundle"):
        read_manifest(tmp_path / "out")
    assert version_of(verify_bundle(tmp_path / "elsewhere")) == 1


def test_a_journal_does_not_follow_a_link_out_of_its_folder(tmp_path: Path) -> None:
    sample_bundle.write(tmp_path / "elsewhere", 1)
    (tmp_path / ".out.staging").mkdir()
    (tmp_path / ".out.staging" / "new-0123456789abcdef").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".out.staging" / "journal.json").write_bytes(b'{"new": "new-0123456789abcdef"}')
    with pytest.raises(BundleError, match="is not a bundle"):
        read_manifest(tmp_path / "out")
