"""The `shoal` command: an inventory of its nouns."""

from __future__ import annotations

from shoal_controlplane.cli import deployment, device, infer, model, serve, up
from shoal_controlplane.cli.root import make_app, run

app = make_app(module.register for module in (up, serve, device, model, deployment, infer))


def main() -> None:
    """Entry point."""
    run(app)
