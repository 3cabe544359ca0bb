"""The light check of signatures against the public tool, and against everything that may happen to a signed bundle."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from resnet_export.exporter.bundle.staging import extending
from resnet_export.exporter.sign.model_signing import sign
from resnet_export.runtime import RequestError, SignatureError, open_session, read_manifest, verify_signature
from tests import signed
from tests.tiny_bundle import images

CHANGES = 1000


@pytest.fixture(scope="module")
def bundle_and_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return signed.signed_bundle(tmp_path_factory.mktemp("signed"))


def public_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_signed_bundle_opens_with_the_public_key(bundle_and_key: tuple[Path, Path]) -> None:
    bundle, public = bundle_and_key
    assert verify_signature(bundle, public) == read_manifest(bundle)
    with open_session(bundle, verify=public) as session:
        assert session.classify(list(images(2)))


def test_what_is_signed_here_the_public_command_verifies(bundle_and_key: tuple[Path, Path]) -> None:
    bundle, public = bundle_and_key
    found = public_tool("verify", "key", bundle, "--signature", bundle / "model.sig", "--public_key", public)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_what_the_public_command_signed_verifies_here(
    bundle_and_key: tuple[Path, Path], tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    bundle = signed.copy(bundle_and_key[0], tmp_path / "bundle")
    private, public = signed.key_pair(tmp_path, curve=curve)
    made = public_tool("sign", "key", bundle, "--signature", bundle / "model.sig", "--private_key", private)
    assert made.returncode == 0, made.stderr
    with open_session(bundle, verify=public) as session:
        assert session.manifest == read_manifest(bundle)


def test_a_signature_may_lie_beside_the_bundle(bundle_and_key: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = signed.copy(bundle_and_key[0], tmp_path / "bundle")
    place = (bundle / "model.sig").rename(tmp_path / "bundle.sig")
    assert verify_signature(bundle, bundle_and_key[1], signature=place)
    with pytest.raises(SignatureError, match="has no signature"):
        verify_signature(bundle, bundle_and_key[1])


def test_a_thousand_changes_are_all_refused(bundle_and_key: tuple[Path, Path], tmp_path: Path) -> None:
    """A byte, a file more, a file less, a renamed file, another key; whatever the seed says."""
    original, public = bundle_and_key
    bundle = signed.copy(original, tmp_path / "bundle")
    _, other = signed.key_pair(tmp_path, "other")
    files = sorted(path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())
    draw = random.Random(14)

    def flip_a_byte(path: Path) -> None:
        data = bytearray(path.read_bytes())
        place = draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)

    def append_a_byte(path: Path) -> None:
        path.write_bytes(path.read_bytes() + bytes([draw.randrange(256)]))

    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: draw.randrange(len(data))])

    def add_a_file(path: Path) -> None:
        path.with_name(f"{draw.randrange(2**32):08x}").write_bytes(draw.randbytes(draw.randrange(4)))

    def rename(path: Path) -> None:
        path.rename(path.with_name(f"{draw.randrange(2**32):08x}"))

    changes = [flip_a_byte, flip_a_byte, append_a_byte, cut, add_a_file, rename, Path.unlink]
    assert verify_signature(bundle, public)
    for number in range(CHANGES):
        file, change = draw.choice(files), draw.choice([*changes, None])
        path = bundle / file
        if change is not None:
            change(path)
        with pytest.raises(SignatureError):
            print(number, change, file, verify_signature(bundle, other if change is None else public).model)
        path.write_bytes((original / file).read_bytes())
        for stray in bundle.rglob("*"):
            if stray.is_file() and stray.relative_to(bundle) not in files:
                stray.unlink()
    assert verify_signature(bundle, public)


def test_no_changed_signature_vouches_for_other_bytes(
    bundle_and_key: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each change of the statement's or the signature's bytes is refused, whatever the JSON around them says."""
    bundle = signed.copy(bundle_and_key[0], tmp_path / "bundle")
    place = bundle / "model.sig"
    whole = json.loads(place.read_bytes())
    draw = random.Random(0)
    for field in (whole["dsseEnvelope"], whole["dsseEnvelope"]["signatures"][0]):
        name = "payload" if "payload" in field else "sig"
        known = field[name]
        for _ in range(50):
            data = bytearray(base64.b64decode(known))
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            field[name] = base64.b64encode(data).decode()
            place.write_text(json.dumps(whole))
            with pytest.raises(SignatureError):
                verify_signature(bundle, bundle_and_key[1])
        field[name] = known


def test_a_file_that_the_signer_left_out_is_refused(
    bundle_and_key: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = signed.copy(bundle_and_key[0], tmp_path / "bundle")
    private, public = signed.key_pair(tmp_path)
    for left_out in ("manifest.json", "model.fp32.onnx", "notes"):
        made = public_tool(
            "sign", "key", bundle, "--signature", bundle / "model.sig", "--private_key", private,
            "--ignore-paths", bundle / left_out,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        with pytest.raises(SignatureError, match="was added to"):
            verify_signature(bundle, public)


def test_links_and_what_is_no_file_are_refused(bundle_and_key: tuple[Path, Path], tmp_path: Path) -> None:
    original, public = bundle_and_key
    bundle = signed.copy(original, tmp_path / "bundle")
    (bundle / "golden.npz").unlink()
    (bundle / "golden.npz").symlink_to(original / "golden.npz")  # the very bytes that were signed
    with pytest.raises(SignatureError, match="is a link"):
        verify_signature(bundle, public)
    (bundle / "golden.npz").unlink()
    os.mkfifo(bundle / "golden.npz")
    with pytest.raises(SignatureError, match="not a regular file"):
        verify_signature(bundle, public)


def test_a_new_version_of_a_bundle_drops_the_signature(
    bundle_and_key: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = signed.copy(bundle_and_key[0], tmp_path / "bundle")
    with extending(bundle) as stage:
        assert stage.base is not None
        stage.commit(stage.base)
    assert (bundle / "notes" / "LICENSE").is_file()
    with pytest.raises(SignatureError, match=r"has no signature model\.sig; sign it with"):
        open_session(bundle, verify=bundle_and_key[1])


def test_a_damaged_bundle_is_not_signed(bundle_and_key: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = signed.copy(bundle_and_key[0], tmp_path / "bundle")
    private, _ = signed.key_pair(tmp_path)
    (bundle / "golden.npz").write_bytes(b"no")
    before = (bundle / "model.sig").read_bytes()
    with pytest.raises(Exception, match="is not what the manifest says"):
        sign(bundle, key=private)
    assert (bundle / "model.sig").read_bytes() == before


def test_a_key_that_is_none_is_said_in_one_sentence(
    bundle_and_key: tuple[Path, Path], tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    wrong = tmp_path / "wrong.pub"
    wrong.write_text("no key")
    with pytest.raises(RequestError, match="is no public key in PEM"):
        open_session(bundle_and_key[0], verify=wrong)
    key = rsa.generate_private_key(65537, 2048).public_key()
    wrong.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(RequestError, match="expected an elliptic-curve one"):
        open_session(bundle_and_key[0], verify=wrong)
    with pytest.raises(RequestError, match="cannot be read"):
        open_session(bundle_and_key[0], verify=tmp_path / "missing.pub")
