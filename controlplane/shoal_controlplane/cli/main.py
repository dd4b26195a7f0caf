"""The `shoal` command: an inventory of its nouns."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    try:
        from shoal_controlplane.cli import deployment, device, infer, model, plan, serve, target, up
        from shoal_controlplane.cli.root import make_app, run
    except ModuleNotFoundError as error:
        # The bare install is the device agent; the command comes with it all the same.
        print(
            f"Error: {error.name} is not installed: pip install 'shoal[controlplane]'",
            file=sys.stderr,
        )
        sys.exit(1)
    run(
        make_app(
            module.register
            for module in (up, serve, device, model, deployment, plan, target, infer)
        )
    )
