"""`chemscale rsca siblings | pair | transform | export`: what a metric is used for."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from chemscale.cli.options import AsJson, RunDir

Metric = Annotated[
    str, typer.Option("--metric", help="best (recommended by evaluate), paper, auto or a registered metric.")
]


def limits_of(texts: list[str]) -> dict[str, tuple[float, float]]:
    """Ranges of labels from ``LABEL=LOW:HIGH``; an open end is infinite."""
    from chemscale.errors import InputError

    out: dict[str, tuple[float, float]] = {}
    for text in texts:
        try:
            name, rest = text.split("=", 1)
            low, high = rest.split(":", 1)
            out[name.strip()] = (float(low) if low else float("-inf"), float(high) if high else float("inf"))
        except ValueError:
            raise InputError(f"--where {text!r}", "write LABEL=LOW:HIGH, e.g. teff=4400:4800") from None
    return out


def siblings(
    star_ids: Annotated[
        list[str] | None, typer.Argument(metavar="STAR_ID...", help="The survey's identifiers of one or more stars.")
    ] = None,
    run: RunDir = "",
    n: Annotated[int | None, typer.Option("--n", min=1, help="How many; 20, or all of those --within.")] = None,
    within: Annotated[
        float | None, typer.Option("--within", min=0, help="Only stars at most this far, in the metric.")
    ] = None,
    stars: Annotated[str | None, typer.Option("--stars", metavar="FILE", help="Identifiers, one a line.")] = None,
    metric: Metric = "best",
    n_features: Annotated[int | None, typer.Option("--n-features", min=1, help="Dimensions kept.")] = None,
    max_delta_velocity: Annotated[
        float | None, typer.Option("--max-delta-velocity", min=0, help="Only stars this close in velocity, km/s.")
    ] = None,
    max_delta_extinction: Annotated[
        float | None, typer.Option("--max-delta-extinction", min=0, help="Only stars this close in extinction, mag.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="LABEL=LOW:HIGH", help="Only stars with a label in a range.")
    ] = None,
    prior: Annotated[
        float | None, typer.Option("--prior", help="Chance that a random star is a sibling: adds a probability.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="TABLE", help="Write a table: .fits, .parquet, .csv, .vot.")
    ] = None,
    json: AsJson = False,
) -> None:
    """The stars chemically nearest to one star, or to each of several, among all stars of the run.

    Example: chemscale rsca siblings 2M19203303+3755558 --run run --n 20 --where teff=4400:4800
    """
    from chemscale.cli import console, echo_json
    from chemscale.errors import InputError
    from chemscale.results.verdict import siblings_verdict
    from chemscale.rsca.siblings import siblings as find

    wanted = [*(star_ids or []), *(_identifiers(stars) if stars else [])]
    if not wanted:
        raise InputError("no star is named", "give an identifier, or a file of them: --stars FILE")
    if not run:
        raise InputError("no run directory was given", "pass --run RUN, made by `chemscale rsca fit STORE --run RUN`")
    found = [
        find(
            star,
            run,
            n if n is not None or within is not None else 20,
            within=within,
            metric=metric,
            n_features=n_features,
            max_delta_velocity=max_delta_velocity,
            max_delta_extinction=max_delta_extinction,
            limits=limits_of(where or []),
            prior=prior,
        )
        for star in dict.fromkeys(wanted)
    ]
    # the table is what was asked for: stdout, where no JSON document goes there
    page = console if json else Console(width=None if sys.stdout.isatty() else 140)
    for ds in found:
        if len(found) > 1:
            page.print(ds.attrs["star"], highlight=False, markup=False)
        _show(ds, page)
    if out:
        import xarray as xr

        from chemscale.rsca.tables import write_table

        labelled = [ds.assign(star=("sibling", [ds.attrs["star"]] * ds.sizes["sibling"])) for ds in found]
        columns = ["star", *(v for v in found[0].data_vars)]
        written = write_table(xr.concat(labelled, "sibling", combine_attrs="drop_conflicts")[columns], out)
        console.print(f"wrote {written}", highlight=False, markup=False)
    console.print(siblings_verdict(found, run), highlight=False, markup=False, soft_wrap=True)
    if json:
        answers = [
            {
                "star": ds.attrs["star"],
                "metric": ds.attrs["metric"],
                "n_features": ds.attrs["n_features"],
                "siblings": [
                    {c: _value(ds[c].values[i]) for c in map(str, ds.data_vars)} for i in range(ds.sizes["sibling"])
                ],
            }
            for ds in found
        ]
        echo_json(answers[0] if len(answers) == 1 else answers)


def _identifiers(path: str) -> list[str]:
    from chemscale.errors import InputError

    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"{path}: {err}", "give a text file with one identifier a line") from None


def _value(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _show(ds: Any, page: Console) -> None:
    """Siblings as a table on the terminal, as many columns as fit."""
    from rich.markup import escape
    from rich.table import Table

    from chemscale.cli import console

    shown, hidden = _that_fit(ds, [str(v) for v in ds.data_vars], page.width)
    table = Table(box=None)
    for c in shown:  # an identifier that is cut off cannot be typed again
        table.add_column(c, no_wrap=True, overflow="fold", justify="left" if ds[c].dtype.kind in "OUT" else "right")
    for i in range(ds.sizes["sibling"]):
        table.add_row(*(escape(_cell(ds[c].values[i])) for c in shown))
    page.print(table)
    if hidden:
        console.print(f"also, in a wider terminal, with --json or --out: {', '.join(hidden)}", highlight=False)


def pair(
    first: Annotated[str, typer.Argument(metavar="ID1", help="Identifier of a star.")],
    second: Annotated[str, typer.Argument(metavar="ID2", help="Identifier of another.")],
    run: RunDir,
    metric: Annotated[str, typer.Option("--metric", help="best (recommended by evaluate), paper or auto.")] = "best",
    prior: Annotated[
        float | None, typer.Option("--prior", help="Chance that a random pair are siblings: adds a probability.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="TABLE", help="Write both spectra: .fits, .parquet, .csv, .vot.")
    ] = None,
    json: AsJson = False,
) -> None:
    """How alike two stars are, how sure that is, and where their spectra differ most.

    Example: chemscale rsca pair 2M19203303+3755558 2M19213390+3750202 --run run --prior 1e-4
    """
    import numpy as np

    from chemscale.cli import console, echo_json
    from chemscale.rsca.pair import pair as compare
    from chemscale.rsca.tables import write_table

    ds = compare(first, second, run, metric=metric, prior=prior)
    a = ds.attrs
    lines = [f"distance {a['distance']:.4g} +- {a['distance_error']:.2g} ({a['metric']}, {a['n_features']} features)"]
    if "log_ratio" in a:
        lines.append(f"ln of the ratio siblings : field at that distance: {a['log_ratio']:.2f}")
    if "probability" in a:
        interval = f"{a['probability_low']:.3g} to {a['probability_high']:.3g}"
        lines.append(f"chance to be siblings {a['probability']:.3g} ({interval})")
    if a.get("caution"):
        lines.append(a["caution"])
    sigma = np.abs(ds["difference"].values / ds["difference_error"].values)
    usable = np.flatnonzero(np.isfinite(sigma))
    worst = usable[np.argsort(-sigma[usable])[:5]]
    lines += [f"{ds['wavelength'].values[i]:.2f} Angstrom: {sigma[i]:.1f} sigma apart" for i in worst]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    if out:
        console.print(f"wrote {write_table(ds, out)}", highlight=False, markup=False)
    if json:
        echo_json({**a, "pixels": len(usable)})


def transform(
    spectra: Annotated[str, typer.Argument(metavar="STORE|FILE", help="A store, or a table of spectra.")],
    run: Annotated[str, typer.Option("--run", metavar="RUN|MODEL", help="Run directory, or a file of `rsca export`.")],
    out: Annotated[str, typer.Option("--out", metavar="TABLE", help=".fits, .parquet, .csv or .vot.")],
    metric: Annotated[str, typer.Option("--metric", help="best (recommended by evaluate), paper or auto.")] = "best",
    json: AsJson = False,
) -> None:
    """Features of spectra that were never in the run's store, and how far they are from what it was trained on.

    Example: chemscale rsca transform new.zarr --run run --out features.fits
    """
    from chemscale.cli import console, echo_json
    from chemscale.rsca.applied import open_model
    from chemscale.rsca.applied import spectra as opened
    from chemscale.rsca.tables import write_table
    from chemscale.runtime.observe import progress_bar

    model = open_model(run, metric)
    with opened(spectra) as survey, progress_bar(survey.sizes["star"], "features", unit="stars") as bar:
        found = model.transform(survey, bar.advance)
    written = write_table(found.reset_coords("star_id"), out)
    outside = int(found["outside_domain"].values.sum())
    n = int(found.sizes["star"])
    told = f"{n:,} stars, {outside:,} of them outside the training field; wrote {written}"
    console.print(told, highlight=False, markup=False, soft_wrap=True)
    if json:
        echo_json({"table": str(written), "stars": n, "outside_domain": outside, "n_features": model.n_features})


def export(
    run: RunDir,
    out: Annotated[str, typer.Option("--out", metavar="MODEL", help="File, such as model.safetensors.")],
    metric: Annotated[str, typer.Option("--metric", help="best (recommended by evaluate), paper or auto.")] = "best",
    json: AsJson = False,
) -> None:
    """Write basis, metric and likeness as one file (safetensors with a JSON header), for use elsewhere.

    Example: chemscale rsca export --run run --out model.safetensors
    """
    from chemscale.cli import console, echo_json
    from chemscale.rsca.applied import LikenessModel
    from chemscale.runtime.run import Run

    LikenessModel.of_run(Run.open(run), metric).save(out)
    told = f"wrote {out}; use: chemscale rsca transform STORE --run {out} --out TABLE"
    console.print(told, highlight=False, markup=False, soft_wrap=True)
    if json:
        echo_json({"file": out, "metric": metric})


def _that_fit(ds: Any, columns: list[str], width: int) -> tuple[list[str], list[str]]:
    """Columns that a terminal of `width` characters can show whole, the first ones first; and the others."""
    shown, hidden = [], []
    for c in columns:
        needed = 2 + max(len(c), *(len(_cell(v)) for v in ds[c].values)) if ds.sizes["sibling"] else 2 + len(c)
        if needed <= width or c == "star_id":
            shown.append(c)
            width -= needed
        else:
            hidden.append(c)
    return shown, hidden


def _cell(value: Any) -> str:
    kind = getattr(getattr(value, "dtype", None), "kind", "f" if isinstance(value, float) else "")
    return f"{value:.4g}" if kind == "f" else str(value)
