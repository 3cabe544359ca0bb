"""Write the bundle that `runtime/bundle/manifest.py` defines: whole, hashed, flushed, and in place in one step.

    with staging("resnet50", bytes_needed=300_000_000) as stage:  # refuses now what would fail at the end
        model = stage.write("model.onnx", data)                   # FileInfo(file, bytes, sha256)
        ...
        bundle = stage.commit(manifest)

Until `commit` nothing changes at the output; when it never comes, nothing remains.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from resnet_export.exporter.bundle.atomic_replace import flush_folder, place, replace
from resnet_export.exporter.bundle.output_folder import check_place, is_occupied, megabytes, opened
from resnet_export.exporter.bundle.staging_folder import StagingFolder
from resnet_export.exporter.bundle.user_files import carry, foreign_entries
from resnet_export.runtime.bundle.files import confined_path
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    FileInfo,
    Manifest,
    check_file_path,
    encode_manifest,
    read_manifest,
    verify_bundle,
)
from resnet_export.runtime.errors import ExportError, RequestError, SchemaError

__all__ = ["Bundle", "Staging", "add_artifacts", "check_output", "extending", "staging"]

StrPath: TypeAlias = str | os.PathLike[str]
Buffer: TypeAlias = bytes | bytearray | memoryview

# Colors and cursor moves (ECMA-48, section 5.4).
_ANSI_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class Bundle:
    """A bundle as it stands on disk: where, and what its manifest says."""

    path: Path
    manifest: Manifest


def check_output(out: StrPath, *, force: bool = False, bytes_needed: int = 0) -> None:
    """Refuse, before any work, an output folder that the finished bundle could not be put at.

    Refused are: a missing or unwritable parent, too little free space for `bytes_needed` bytes, anything but
    a folder, a folder that holds other things than a bundle, a bundle without `force`, a mount point, the
    current folder or one around it, and a bundle that another process is writing. Raises RequestError.
    """
    with opened(Path(out), force=force, bytes_needed=bytes_needed):
        pass


@contextlib.contextmanager
def staging(out: StrPath, *, force: bool = False, bytes_needed: int = 0) -> Iterator[Staging]:
    """Open a new bundle that is to stand at `out`, and lock that place against other exports.

    With `force`, a bundle that stands there is replaced; files in it that it does not name are the user's and
    are carried over. Everything that `check_output` refuses is refused on entry. Raises RequestError.
    """
    with opened(Path(out), force=force, bytes_needed=bytes_needed) as folder:
        yield Staging(Path(out), folder, force=force)


@contextlib.contextmanager
def extending(bundle: StrPath, *, bytes_needed: int = 0) -> Iterator[Staging]:
    """Open the bundle at `bundle` for a new version of itself, and lock it against other exports.

    What the committed manifest names and nobody wrote anew is taken over from the old version, whose files
    are all verified on entry; its manifest is `Staging.base`. Raises RequestError, BundleError, SchemaError
    or IntegrityError.
    """
    read_manifest(bundle)
    with opened(Path(bundle), force=True, bytes_needed=bytes_needed) as folder:
        yield Staging(Path(bundle), folder, force=True, base=verify_bundle(bundle))


def add_artifacts(
    bundle: StrPath, artifacts: Iterable[tuple[Artifact, Buffer]], files: Mapping[str, Buffer] | None = None
) -> Bundle:
    """Add artifacts, and other files such as their layer reports, to a bundle in one atomic step.

    An artifact replaces the one of the same name. Raises what `extending` raises, and ExportError when an
    artifact's size or hash is not that of its bytes.
    """
    with extending(bundle) as stage:
        base = read_manifest(bundle)
        merged = {artifact.name: artifact for artifact in base.artifacts}
        for artifact, data in artifacts:
            stage.write(artifact.file, data)
            merged[artifact.name] = artifact
        for file, data in (files or {}).items():
            stage.write(file, data)
        return stage.commit(msgspec.structs.replace(base, artifacts=tuple(merged.values())))


class Staging:
    """A bundle under construction, in a hidden folder beside the place where it will stand.

    Made by `staging` and `extending`. Not for use by several threads.

    Attributes:
        base: the manifest of the version that is being extended; None for a new bundle.
    """

    def __init__(
        self, out: Path, folder: StagingFolder, *, force: bool, base: Manifest | None = None
    ) -> None:
        self.base = base
        self._out = out
        self._staged = folder
        self._force = force
        self._written: dict[str, FileInfo] = {}
        self._committed = False

    def write(self, file: str, data: Buffer | Iterable[Buffer]) -> FileInfo:
        """Write `file` (relative, in forward slashes); return its size and SHA-256, taken while writing.

        `data` are its bytes, or chunks of them. Writing a file again replaces it. The bytes are on disk when
        this returns. Raises RequestError when they cannot be, ExportError for a name that no bundle may hold.
        """
        try:
            check_file_path(file)
        except SchemaError as error:
            raise ExportError(f"no file of a bundle can be called {file!r}: {error}") from error
        chunks = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
        info = self._write(file, chunks)
        self._written[file] = info
        return info

    def preview(self, manifest: Manifest) -> Path:
        """Return a folder that can be read as the bundle that `commit(manifest)` would make.

        It is there to be checked (a session opened, parity measured) before anybody else sees it, and is gone
        after `commit`. Raises what `commit` raises.
        """
        self._assemble(manifest)
        return self._folder()

    def commit(self, manifest: Manifest) -> Bundle:
        """Put the bundle into place and return it.

        Files that were written and that neither an artifact nor the golden outputs name are listed under
        `manifest.files`. Raises ExportError when manifest and files disagree or the manifest breaks its
        schema, RequestError when the output has changed since it was checked, or cannot be written.
        """
        manifest = self._assemble(manifest)
        with self._system_errors("it"):
            self._put_into_place()
        self._committed = True
        return Bundle(self._out, manifest)

    def _assemble(self, manifest: Manifest) -> Manifest:
        """Complete the manifest, hold it against what was written, and write it and what it inherits."""
        manifest = _printable(self._with_other_files(manifest))
        try:
            data = encode_manifest(manifest)
        except SchemaError as error:
            raise ExportError(f"the manifest of the new bundle is wrong: {error}") from error
        inherited = {file.file: file for file in self.base.contents()} if self.base else {}
        for file in manifest.contents():
            found = self._written.get(file.file) or inherited.get(file.file)
            if found is None:
                raise ExportError(f"the manifest names {file.file!r}, which was not written")
            if found != file:
                raise ExportError(
                    f"the manifest says that {file.file!r} has {file.bytes:,} bytes and sha256 "
                    f"{file.sha256[:12]}…, but {found.bytes:,} bytes with {found.sha256[:12]}… were written"
                )
            if file.file not in self._written:
                with self._system_errors(file.file):
                    self._inherit(file.file)
        self._write(MANIFEST_NAME, (data,))
        return manifest

    def _with_other_files(self, manifest: Manifest) -> Manifest:
        named = {*(artifact.file for artifact in manifest.artifacts), manifest.golden.file}
        others = {file.file: file for file in manifest.files}
        others |= {file: info for file, info in self._written.items() if file not in named}
        return msgspec.structs.replace(manifest, files=tuple(others[file] for file in sorted(others)))

    def _inherit(self, file: str) -> None:
        target = self._folder() / file
        if not target.exists():
            carry(confined_path(self._staged.home, file), target)

    def _put_into_place(self) -> None:
        home, new = self._staged.home, self._staged.new
        check_place(self._out, home, force=self._force)
        if not is_occupied(home):
            _flush_tree(new)
            place(new, home)
            return
        for entry in foreign_entries(home, read_manifest(home)):
            target = new / entry
            while os.path.lexists(target):  # the new bundle needs this name: the user's file gets another
                target = target.with_name(f"{target.name}.kept")
            carry(home / entry, target)
        new.chmod(stat.S_IMODE(home.stat().st_mode))
        _flush_tree(new)
        replace(new, home, self._staged.old)

    def _write(self, file: str, chunks: Iterable[Buffer]) -> FileInfo:
        size, digest = 0, hashlib.sha256()
        with self._system_errors(file):
            path = self._folder() / file
            path.parent.mkdir(parents=True, exist_ok=True)
            # Never written through: the old name may be a hard link into the bundle that still stands.
            path.unlink(missing_ok=True)
            with path.open("xb") as target:
                for chunk in chunks:
                    view = memoryview(chunk).cast("B")
                    target.write(view)
                    digest.update(view)
                    size += view.nbytes
                target.flush()
                os.fsync(target.fileno())
        return FileInfo(file=file, bytes=size, sha256=digest.hexdigest())

    def _folder(self) -> Path:
        if self._committed:
            raise RuntimeError("this bundle is committed: open it with extending() to change it")
        self._staged.new.mkdir(exist_ok=True)
        return self._staged.new

    @contextlib.contextmanager
    def _system_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.ENOSPC:
                reason += f", {megabytes(shutil.disk_usage(self._staged.home.parent).free)} are free"
            raise RequestError(
                f"the bundle {self._out} cannot be written: {what} failed ({reason}); free space, or give "
                "another output folder"
            ) from error


def _flush_tree(folder: Path) -> None:
    for root, _, _ in os.walk(folder, topdown=False):
        flush_folder(Path(root))


def _printable(manifest: Manifest) -> Manifest:
    """Drop terminal escapes from the texts that other libraries' messages went into."""
    provenance = manifest.provenance
    artifacts = (
        msgspec.structs.replace(
            artifact,
            excluded=tuple(
                msgspec.structs.replace(layer, reason=_without_controls(layer.reason))
                for layer in artifact.excluded
            ),
        )
        for artifact in manifest.artifacts
    )
    return msgspec.structs.replace(
        manifest,
        artifacts=tuple(artifacts),
        provenance=msgspec.structs.replace(
            provenance, notices=tuple(_without_controls(notice) for notice in provenance.notices)
        ),
    )


def _without_controls(text: str) -> str:
    text = _ANSI_SEQUENCE.sub("", text)
    return "".join(c for c in text if c in "\n\r\t" or not (c < " " or "\x7f" <= c <= "\x9f"))
