"""`chemscale config`: the commented default settings."""

from __future__ import annotations

import sys

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""

    @app.command("config")
    def config(
        json: bool = typer.Option(False, "--json", help="Keys, defaults and meanings as JSON instead."),
    ) -> None:
        """Print every setting with its default and meaning, as TOML.

        Example: chemscale config > my.toml; chemscale --config my.toml rsca fit survey.zarr --run run
        """
        from chemscale.cli import command, echo_json
        from chemscale.config import default_toml, describe

        if json:
            echo_json(describe(command()))
        else:
            sys.stdout.write(default_toml(command()))
