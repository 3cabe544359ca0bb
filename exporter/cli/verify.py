"""`resnet-export verify`: whether a bundle is what somebody signed."""

from __future__ import annotations

from pathlib import Path

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.runtime import verify_bundle, verify_signature
from resnet_export.runtime.errors import RequestError

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(name="verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=_FILE, metavar="PEM", help="The signer's elliptic-curve public key.")
@click.option("--identity", metavar="NAME", help="Who signed without a key: an e-mail address or a URI.")
@click.option("--identity-provider", metavar="URL", help="The OpenID Connect issuer of --identity.")
@click.option("--trust-config", type=_FILE, metavar="JSON", help="Use this Sigstore instance.")
@click.option("--staging", is_flag=True, help="Use Sigstore's staging instance.")
@click.option(
    "--signature", type=_FILE, metavar="FILE", help="The signature; by default model.sig in BUNDLE."
)
@json_option
@debug_option
def command(
    bundle: Path,
    key: Path | None,
    identity: str | None,
    identity_provider: str | None,
    trust_config: Path | None,
    staging: bool,
    signature: Path | None,
    as_json: bool,
) -> None:
    """Check that every file of BUNDLE is what a key or an identity signed.

    A file that was changed, added, removed or renamed is refused, exit status 2. For key pairs this needs
    cryptography (pip install 'resnet-export[verify]'), for identities model-signing ([sign]).
    """  # fmt: skip
    if key is not None:
        wrong = [n for n, v in {"--identity": identity, "--trust-config": trust_config}.items() if v]
        if wrong or identity_provider or staging:
            raise RequestError("--key and the options of an identity contradict each other; give one of them")
        manifest = verify_signature(bundle, key, signature=signature)
        who = f"the owner of {key}"
    else:
        if identity is None or identity_provider is None:
            raise RequestError(
                "whose signature it shall be was not said; give --key, or --identity and --identity-provider"
            )
        from resnet_export.exporter.sign.model_signing import Identity, verify_identity

        verify_identity(
            bundle,
            Identity(identity, identity_provider),
            signature=signature,
            trust_config=trust_config,
            staging=staging,
        )
        manifest = verify_bundle(bundle)
        who = identity
    files = len(manifest.contents()) + 1
    if as_json:
        print_json({"bundle": str(bundle), "files": files, "signed_by": who})
    else:
        click.echo(f"{bundle}: {manifest.model.arch}, {files} files as signed by {who}")
