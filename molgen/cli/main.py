"""`molgen`: the command line. Importing it is quick: subcommands import torch, RDKit and the rest when they run."""

from __future__ import annotations

import importlib
import signal
from typing import Annotated, Any

import typer

import molgen
from molgen.cli.common import Group

# Modules of molgen.cli, in the order of `molgen --help`.
COMMANDS = ("ts", "peptide", "fes", "train", "evaluate", "data", "doctor")


class _Ordered(Group):
    """Typer would list plain commands before groups of commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    name="molgen",
    cls=_Ordered,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"molgen {molgen.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Generative models propose molecular structures; physics verifies them."""


for _name in COMMANDS:
    importlib.import_module(f"molgen.cli.{_name}").register(app)


def main() -> None:
    """The console script."""
    # Batch systems end a job with SIGTERM: taken as Ctrl-C, it leaves partial results and a summary.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="molgen")
