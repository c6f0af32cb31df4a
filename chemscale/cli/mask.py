"""`chemscale mask`: leave out pixels of a store that is there."""

from __future__ import annotations

from typing import Annotated

import typer

from chemscale.cli.options import AsJson, Cluster, client_for


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""
    app.command("mask")(mask)


def mask(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Survey store.")],
    find: Annotated[
        list[str] | None,
        typer.Option("--find", metavar="EFFECT", help="extinction, velocity or none; may be repeated."),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option("--window", metavar="LOW:HIGH", help="Mask these Angstroms in any case; may be repeated."),
    ] = None,
    max_error: Annotated[
        float | None, typer.Option("--max-error", help="Mask pixels of a larger error than this.")
    ] = None,
    low: Annotated[
        float | None,
        typer.Option(
            "--low", help="Stars below this are free of the effect: by default A_K < 0.005 mag, or |v| < 5 km/s."
        ),
    ] = None,
    high: Annotated[
        float | None,
        typer.Option("--high", help="Stars above this have it: by default A_K > 0.5 mag, or |v| > 80 km/s."),
    ] = None,
    components: Annotated[int, typer.Option("--components", min=1, help="Components of the clean basis.")] = 30,
    clear: Annotated[bool, typer.Option("--clear", help="Take the mask off.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be masked; change nothing.")] = False,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Mask wavelengths that show something other than the star, by default interstellar bands.

    Without --find or --window, bands are found from stars of high extinction. The store's spectra are not
    changed: readers see the pixels flagged; a second call replaces the mask of the first.

    Example: chemscale mask apogee.zarr --find extinction --window 15260:15285
    """
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.errors import InputError
    from chemscale.quality.masking import mask_survey

    given = [n for n, v in (("--find", find), ("--window", window), ("--max-error", max_error)) if v]
    if clear and given:
        raise InputError(f"--clear and {given[0]} exclude each other", "leave one of them out")
    effects = [e for e in find or [] if e != "none"]
    if not find and not window and not clear:
        effects = ["extinction"]
    if len(effects) > 1 and (low is not None or high is not None):
        raise InputError("--low and --high are limits of one effect", "give one --find, or leave them out")
    limits = {k: v for k, v in (("low", low), ("high", high)) if v is not None}
    with client_for(None, cluster):
        found = mask_survey(
            store,
            find=effects,
            windows=[_window(text) for text in window or []],
            max_error=max_error,
            dry_run=dry_run,
            n_components=components,
            **limits,
        )
    if as_json:
        echo_json(found)
        return
    for w in found["windows"]:
        console.print(f"{w['first']:10.2f} to {w['last']:10.2f} Angstrom  {w['reason'].lower()}", highlight=False)
    what = f"{len(found['windows'])} windows, {100 * found['share_of_pixels']:.2f} % of the grid"
    if max_error is not None:
        what += f", and errors above {max_error}"
    done = "would be masked" if dry_run else f"masked in {escape(found['store'])} (revision {found['revision']})"
    console.print(f"[green]{what}[/] {done}", highlight=False, soft_wrap=True)


def _window(text: str) -> tuple[float, float]:
    from chemscale.errors import InputError

    low, _, high = text.partition(":")
    try:
        pair = float(low), float(high)
    except ValueError:
        pair = (0.0, 0.0)
    if not 0 < pair[0] < pair[1]:
        raise InputError(f"--window {text!r} is not LOW:HIGH in Angstrom", "for example --window 15260:15285")
    return pair
