"""`chemscale config`: the commented default settings."""

from __future__ import annotations

import sys

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""

    @app.command("config")
    def config() -> None:
        """Print every setting with its default and meaning, as TOML.

        Example: chemscale config > my.toml; chemscale --config my.toml rsca fit survey.zarr --run run
        """
        from typer.main import get_command

        from ..config import default_toml

        sys.stdout.write(default_toml(get_command(app)))
