"""`resnet-export sign`: vouch for every file of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.exporter.cli.output import check_outputs
from resnet_export.exporter.sign.model_signing import sign
from resnet_export.runtime.errors import RequestError

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(name="sign")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=_FILE, metavar="PEM", help="Sign with this elliptic-curve private key.")
@click.option(
    "--password",
    envvar="RESNET_EXPORT_KEY_PASSWORD",
    metavar="TEXT",
    help="Password of --key; better in the variable RESNET_EXPORT_KEY_PASSWORD.",
)
@click.option("--identity-token", metavar="JWT", help="Sign with this OpenID Connect token, without a key.")
@click.option(
    "--ambient", is_flag=True, help="Sign with the workload identity of this CI job, without a key."
)
@click.option("--trust-config", type=_FILE, metavar="JSON", help="Use this Sigstore instance.")
@click.option("--staging", is_flag=True, help="Use Sigstore's staging instance.")
@click.option(
    "--signature", type=_FILE, metavar="FILE", help="File to write; by default model.sig in BUNDLE."
)
@json_option
@debug_option
def command(
    bundle: Path,
    key: Path | None,
    password: str | None,
    identity_token: str | None,
    ambient: bool,
    trust_config: Path | None,
    staging: bool,
    signature: Path | None,
    as_json: bool,
) -> None:
    """Sign every file of BUNDLE in the format of OpenSSF Model Signing.

    With a key pair, or through Sigstore without one. A change of any file afterwards voids the signature, and so
    does an export, a build or a relabel: sign last.

    Needs model-signing: pip install 'resnet-export[sign]'.
    """  # fmt: skip
    keyless = {
        "--identity-token": identity_token,
        "--ambient": ambient,
        "--trust-config": trust_config,
        "--staging": staging,
    }
    given = [option for option, value in keyless.items() if value]
    if key is not None and given:
        raise RequestError(f"--key and {given[0]} contradict each other; sign with a key pair or without")
    if key is None and password is not None and not given:
        raise RequestError("--password was given without --key, whose password it is; give both")
    check_outputs({"--signature": signature}, {"--key": key})
    place = sign(
        bundle,
        key=key,
        password=password,
        signature=signature,
        **(
            {}
            if key is not None
            else {
                "identity_token": identity_token,
                "use_ambient_credentials": ambient,
                "trust_config": trust_config,
                "use_staging": staging,
            }
        ),
    )
    if as_json:
        print_json({"bundle": str(bundle), "signature": str(place)})
    else:
        click.echo(f"{place}: signed {bundle}")
