"""Results as JSON on standard output, the same on every command."""

from __future__ import annotations

import click
import msgspec

__all__ = ["json_option", "print_json"]

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)
"""The option `as_json`."""


def print_json(value: object) -> None:
    """Print a value, structs included, as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
