"""The root of the command: how nouns join it, and how every failure reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperGroup

from shoal_controlplane.cli.output import clean

Register = Callable[[typer.Typer], None]
"""Adds a module's commands to the root."""

INTERRUPTED = 130
OWN_ERRORS = ("shoal_controlplane", "shoal_shared")
"""Packages whose exceptions carry one plain sentence for people."""


class _Root(TyperGroup):
    """Turns failures into a sentence on stderr and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in OWN_ERRORS:
                raise
            _complain(str(error))
            raise typer.Exit(1) from None


def make_app(registers: Iterable[Register]) -> typer.Typer:
    """The command with the commands of all modules, in their order."""
    app = typer.Typer(
        cls=_Root,
        name="shoal",
        help="One inference endpoint out of many small devices.",
        no_args_is_help=True,
        add_completion=False,
        # Plain help: rich would take longer to import than most commands take to run.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for register in registers:
        register(app)
    return app


def noun(name: str, text: str) -> typer.Typer:
    """A group of commands about one noun."""
    return typer.Typer(name=name, help=text, no_args_is_help=True, rich_markup_mode=None)


def run(app: typer.Typer) -> None:
    """Run the command and exit. A defect is one line too, `SHOAL_DEBUG=1` shows where."""
    # A terminal or pipe that cannot show a character gets a substitute, not a failure.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception as error:
        if os.environ.get("SHOAL_DEBUG"):
            raise
        _complain(
            f"the command failed in a way it should not ({type(error).__name__}: {error}): "
            "run it again with SHOAL_DEBUG=1 and report what it prints"
        )
        raise SystemExit(1) from None


def _root() -> None:
    """Makes the root a group, however many commands it has."""


def _complain(sentence: str) -> None:
    typer.echo(f"Error: {clean(sentence)}", err=True)
