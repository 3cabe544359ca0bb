"""A real headless Chromium for tests of pages: one that the machine has, or one from a package.

    python -m tests.chromium    install the pinned build into the virtual environment

Playwright's own browsers come from a server of their own, which a closed network does not reach. The package
`@sparticuz/chromium` carries a headless build that any x86-64 Linux runs, with the libraries and the font that it
needs. Installing it takes npm; where that is missing, the tests of pages are skipped and say so.
"""

from __future__ import annotations

import base64
import ctypes.util
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "@sparticuz/chromium@153.0.0"
SHA512 = "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="

FOLDER = Path(sys.prefix) / "chromium"
VARIABLE = "RESNET_EXPORT_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")

FLAGS = ("--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-background-networking")

_PACKED = ("chromium", "al2023.tar", "fonts.tar", "swiftshader.tar")
_INFLATE = """
const fs = require("fs"), zlib = require("zlib");
const [from, to] = process.argv.slice(1);
fs.writeFileSync(to, zlib.brotliDecompressSync(fs.readFileSync(from)));
"""
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><dir>/usr/share/fonts</dir><cachedir>{cache}</cachedir></fontconfig>
"""


@dataclass(frozen=True)
class Chromium:
    """A browser's program, and the environment that it wants."""

    program: Path
    environment: dict[str, str]


def find() -> Chromium | None:
    """Return the browser that a variable names, the installed one, or the machine's own, in this order."""
    named = os.environ.get(VARIABLE)
    if named:
        return Chromium(Path(named), dict(os.environ))
    program = FOLDER / "chromium"
    if program.exists():
        return Chromium(program, _environment())
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return None if found is None else Chromium(Path(found), dict(os.environ))


def missing() -> str:
    """Say what to do when there is none."""
    return (
        f"there is no Chromium: run python -m tests.chromium (needs npm), install one of {', '.join(NAMES)}, "
        f"or name one in {VARIABLE}"
    )


def install() -> str:
    """Install the pinned build unless it is there; return in words what was done."""
    stamp = FOLDER / "version"
    if stamp.exists() and stamp.read_text() == PACKAGE:
        return f"{PACKAGE} is installed"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"{PACKAGE} is for Linux on x86-64; {missing()}"
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return f"npm or node is missing; {missing()}"
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        fetched = subprocess.run(
            [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(where)], stdout=subprocess.DEVNULL
        )
        if fetched.returncode:
            return f"npm could not fetch {PACKAGE}; {missing()}"
        (archive,) = where.glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != SHA512:
            raise SystemExit(f"{PACKAGE} has SHA-512 {found}, expected {SHA512}")
        with tarfile.open(archive) as packed:
            packed.extractall(where, filter="data")
        new = where / "chromium"
        new.mkdir()
        for name in _PACKED:
            source = where / "package" / "bin" / f"{name}.br"
            subprocess.run([node, "-e", _INFLATE, str(source), str(new / name)], check=True)
            if name.endswith(".tar"):
                with tarfile.open(new / name) as packed:
                    packed.extractall(new, filter="data")
                (new / name).unlink()
        (new / "chromium").chmod(0o755)
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.move(new, FOLDER)
    (FOLDER / "fonts.conf").write_text(_FONTS.format(fonts=FOLDER / "fonts", cache=FOLDER / "cache"))
    stamp.write_text(PACKAGE)
    return f"{PACKAGE} is installed in {FOLDER}"


def _environment() -> dict[str, str]:
    environment = {**os.environ, "FONTCONFIG_FILE": str(FOLDER / "fonts.conf")}
    if ctypes.util.find_library("nss3") is None:  # the machine's own libraries fit it better
        environment["LD_LIBRARY_PATH"] = str(FOLDER / "lib")
    return environment


if __name__ == "__main__":
    print(install())
