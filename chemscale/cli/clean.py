"""`chemscale clean`: take the effect of velocity, extinction, fibre or date off a store's spectra."""

from __future__ import annotations

from typing import Annotated

import typer

from chemscale.cli.options import AsJson, Cluster, client_for


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""
    app.command("clean")(clean)


def clean(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Survey store.")],
    of: Annotated[
        list[str] | None,
        typer.Option("--of", metavar="VARIABLE", help="radial_velocity, extinction, ...; may be repeated."),
    ] = None,
    degree: Annotated[int, typer.Option("--degree", min=1, help="Of the polynomial in these variables.")] = 3,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="A run of this store: rates before and after.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Show readers the spectra as they were ingested.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come off; change nothing.")] = False,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Take off the flux what follows a per-star variable at fixed temperature, gravity and chemistry.

    The store's spectra are not changed: readers see them cleaned; a second call replaces the cleaning of the first.
    Fit again afterwards, into another run, and `chemscale compare` the two.

    Example: chemscale clean apogee.zarr --of radial_velocity --of extinction --run run --dry-run
    """
    from functools import partial

    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.errors import InputError
    from chemscale.quality.cleaning import clean_survey
    from chemscale.rsca.cleaned import cleaned_rates

    if clear and of:
        raise InputError("--clear and --of exclude each other", "leave one of them out")
    if not clear and not of:
        raise InputError("nothing to clean is named", "for example --of radial_velocity, or --clear")
    rate = None if run is None or clear else partial(cleaned_rates, run)
    with client_for(None, cluster):
        found = clean_survey(store, of=of or [], degree=degree, rate=rate, dry_run=dry_run)
    if as_json:
        echo_json(found)
        return
    where = f"{escape(found['store'])} (revision {found['revision']})"
    if clear:
        console.print(f"readers see the spectra as they were ingested: {where}", highlight=False, soft_wrap=True)
        return
    names = ", ".join(found["covariates"])
    console.print(
        f"{found['share']:.2%} of a pixel's scatter follows {names} (noise alone: {found['chance']:.2%}), most at "
        + ", ".join(f"{place:.1f} ({share:.0%})" for place, share in found["strongest"][:3])
        + f" Angstrom; {found['stars']:,} field stars, at fixed {', '.join(found['held']) or 'nothing'}",
        highlight=False,
    )
    if found["uncorrected"]:
        console.print(f"[yellow]{found['uncorrected']:,} stars lack one of these and stay as they are[/]")
    if spread := found["members_spread"]:
        console.print(f"spread of siblings {spread['change']:+.1%} +- {spread['error']:.1%}", highlight=False)
    if rates := found["rates"]:
        for name, (change, error) in rates["differences"].items():
            console.print(
                f"{name}: {rates['before'][name]:.4f} -> {rates['after'][name]:.4f} ({change:+.4f} +- {error:.4f})",
                highlight=False,
            )
        for name, value in rates["before"]["correlation"].items():
            after = rates["after"]["correlation"].get(name, 0.0)
            console.print(f"largest |r| of a kept feature with {name}: {value:.3f} -> {after:.3f}", highlight=False)
    for text in found["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)
    console.print(f"[green]{'would be cleaned' if dry_run else 'cleaned'}[/] {where}", highlight=False, soft_wrap=True)
