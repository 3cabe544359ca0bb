"""`resnet-export sign` and `verify`, as a user meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from resnet_export.exporter.cli.group import cli
from tests import parity_bundle, signed
from tests.tiny_bundle import FP32


def said(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    found = CliRunner().invoke(cli, [*map(str, arguments)], env=env)
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("sign") / "bundle", [FP32])


def test_signed_and_verified_with_a_key_pair(bundle: Path, tmp_path: Path) -> None:
    private, public = signed.key_pair(tmp_path)
    assert said("sign", bundle, "--key", private) == (0, f"{bundle / 'model.sig'}: signed {bundle}\n")
    code, text = said("verify", bundle, "--key", public)
    assert (code, text) == (0, f"{bundle}: tiny, 3 files as signed by the owner of {public}\n")


def test_a_key_with_a_password(bundle: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    key = tmp_path / "key.pem"
    secret = pem.BestAvailableEncryption(b"open sesame")
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            pem.Encoding.PEM, pem.PrivateFormat.PKCS8, secret
        )
    )
    place = tmp_path / "tiny.sig"
    arguments = ("sign", bundle, "--key", key, "--signature", place)
    code, text = said(*arguments, env={"RESNET_EXPORT_KEY_PASSWORD": "wrong"})
    assert code == 2
    assert f"cannot be signed with the private key {key}" in text
    assert not place.exists()
    assert said(*arguments, env={"RESNET_EXPORT_KEY_PASSWORD": "open sesame"})[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["verify", "BUNDLE"], "whose signature it shall be was not said; give --key, or --identity"),
        (["verify", "BUNDLE", "--key", "PUBLIC", "--identity", "a@b.c"], "contradict each other"),
        (["verify", "BUNDLE", "--key", "OTHER"], "and not of the one that was given"),
        (["verify", "BUNDLE", "--key", "PRIVATE"], "is no public key in PEM"),
        (["verify", "NOWHERE", "--key", "PUBLIC"], "is not a bundle"),
        (["sign", "BUNDLE", "--key", "PUBLIC"], "cannot be signed with the private key"),
        (["sign", "BUNDLE", "--key", "NOWHERE"], "No such file"),
        (["sign", "NOWHERE", "--key", "PRIVATE"], "is not a bundle"),
        (["sign", "BUNDLE", "--key", "PRIVATE", "--ambient"], "--key and --ambient contradict each other"),
        (["sign", "BUNDLE", "--identity-token", "none"], "cannot be signed with Sigstore"),
    ],
)
def test_bad_input_is_one_sentence_and_costs_no_signature(
    bundle: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    private, public = signed.key_pair(tmp_path)
    _, other = signed.key_pair(tmp_path, "other")
    assert said("sign", bundle, "--key", private)[0] == 0
    before = (bundle / "model.sig").read_bytes()
    names = {
        "BUNDLE": bundle,
        "PUBLIC": public,
        "OTHER": other,
        "PRIVATE": private,
        "NOWHERE": tmp_path / "n",
    }
    code, text = said(*(names.get(argument, argument) for argument in arguments))
    assert code == 2
    assert sentence in text
    assert text.count("\n") == 1
    assert (bundle / "model.sig").read_bytes() == before
