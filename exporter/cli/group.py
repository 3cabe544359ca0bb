"""The `resnet-export` group: export is what it does by itself, the other commands are loaded on use."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import click

from resnet_export.exporter.cli.errors import debug_option, one_sentence
from resnet_export.exporter.cli.export_options import export_options

# Command name → the help line, kept here so that `--help` imports no command.
COMMANDS = {
    "calibrate": "Measure ranges for INT8 and write them as a table.",
    "build": "Build engines on or for a target and add them to a bundle.",
    "parity": "Compare a bundle's artifacts with the reference; a gate for CI.",
    "compare": "Say what changed from one bundle to another, on the same images.",
    "bench": "Time a bundle's artifacts on every backend of this host, side by side.",
    "infer": "Print the most probable labels of images.",
    "inspect": "Show what a bundle holds, what this host would run, and why.",
    "triton": "Write a model repository for Triton Inference Server.",
    "sign": "Sign every file of a bundle, with a key pair or a Sigstore identity.",
    "verify": "Check that a bundle is what a key or an identity signed.",
    "relabel": "Give the classes of a bundle other names.",
    "doctor": "Say what this host can export, build and run, and how to get the rest.",
    "constraints": "Print the versions that this release was tested with, for pip.",
    "models": "List the architectures with parameters, operations and published accuracy.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are invoked, and whose errors are one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"resnet_export.exporter.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        with one_sentence(ctx):
            return super().invoke(ctx)


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from resnet_export.exporter.cli.version import versions_text

        click.echo(versions_text())
        context.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@export_options
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version of resnet-export and of every backend, and exit.",
)
@debug_option
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """Export a ResNet to ONNX and TensorRT, with verified numerical parity.

    Without a command, export: resnet-export --depth 50 --fp16
    """
    given = [
        name
        for name in options
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if context.invoked_subcommand is None:
        from resnet_export.exporter.cli.export import run

        run(**options)
    elif context.default_map:
        raise click.UsageError(
            f"--config is an option of the export and has no meaning for {context.invoked_subcommand!r}; leave it out"
        )
    elif given:
        flag = next(option.opts[-1] for option in context.command.params if option.name == given[0])
        raise click.UsageError(
            f"{flag} is an option of the export and has no meaning for {context.invoked_subcommand!r}; "
            f"give it after the command's name if the command has it, or leave it out"
        )
