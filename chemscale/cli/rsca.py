"""`chemscale rsca fit | evaluate | siblings | pair | transform | ...`: likeness, and what it finds."""

from __future__ import annotations

import shlex
from time import perf_counter
from typing import Annotated, Any, Literal

import typer

from chemscale.cli.options import Cluster, Workers, client_for
from chemscale.cli.siblings import AsJson, Metric, RunDir, export, limits_of, pair, siblings, transform


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    verbs = typer.Typer(help="Chemical likeness from spectra (RSCA).", no_args_is_help=True)
    app.add_typer(verbs, name="rsca")
    for verb in (fit, evaluate, siblings, pair, transform, export, neighbours, nuisance, elements):
        verbs.command(verb.__name__)(verb)


def components_of(text: Any) -> int | Literal["auto"]:
    """`--components`: a positive number, or auto."""
    if str(text) == "auto":
        return "auto"
    if not str(text).isdecimal() or not int(text):
        raise typer.BadParameter(f"{text!r} is neither a positive number nor auto")
    return int(text)


def fit(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A survey store.")],
    run: RunDir,
    components: Annotated[
        Any,
        typer.Option(
            "--components",
            parser=components_of,
            metavar="K",
            help="Components of the basis. auto: as many of 30 as held-out clusters ask for.",
        ),
    ] = 30,
    metric: Annotated[
        str, typer.Option("--metric", help="paper: the published recipe. auto: also a metric chosen by nested CV.")
    ] = "paper",
    recipe: Annotated[
        str,
        typer.Option("--recipe", help="recommended: per-pixel errors, outliers left out. paper: as published."),
    ] = "recommended",
    noise: Annotated[
        str | None, typer.Option("--noise", help="shared or per-pixel; by default as the recipe says.")
    ] = None,
    robust: Annotated[
        bool | None, typer.Option("--robust/--no-robust", help="Leave outliers out; by default as the recipe says.")
    ] = None,
    tol: Annotated[
        float | None,
        typer.Option("--tol", min=0, help="Angle (radian) at which the fit stops; by default as the recipe says."),
    ] = None,
    max_passes: Annotated[
        int | None, typer.Option("--max-passes", min=1, help="Largest number of passes; by default as the recipe says.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="subsample (the default), or incremental: an incremental PCA over all stars."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="cuda, cuda:1, ...: the passes of fit and embedding on a GPU; by default on CPUs."
        ),
    ] = None,
    min_members: Annotated[int, typer.Option("--min-members", min=2, help="Smallest cluster that takes part.")] = 2,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="LABEL=LOW:HIGH",
            help="Only stars, field and members, with a label in a range, e.g. teff=4000:5000; may be repeated.",
        ),
    ] = None,
    no_cuts: Annotated[
        bool, typer.Option("--no-cuts", help="Without the survey's default cuts (the paper's, for APOGEE).")
    ] = False,
    pairs: Annotated[
        str | None,
        typer.Option(
            "--pairs",
            metavar="TABLE",
            help="Siblings that are no clusters (star_1, star_2 or star_id, group; kind): learned from by auto.",
        ),
    ] = None,
    pair_weight: Annotated[
        list[str] | None,
        typer.Option("--pair-weight", metavar="KIND=WEIGHT", help="Weight of a kind of pairs; may be repeated."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start a run on another store, or a basis that is there, anew.")
    ] = False,
    workers: Workers = None,
    cluster: Cluster = None,
    json: AsJson = False,
) -> None:
    """Fit the basis, embed every star and learn the metric from the clusters.

    Example: chemscale rsca fit survey.zarr --run run --components 30 --metric auto
    """
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.rsca.companions import parse_weights
    from chemscale.rsca.pipeline import fit_run
    from chemscale.rsca.recipes import OUTLIER_SIGMAS, chosen_recipe

    began = perf_counter()
    sigmas = None if robust is None else OUTLIER_SIGMAS if robust else 0.0
    how = chosen_recipe(recipe, noise=noise, outlier_sigmas=sigmas, tol=tol, max_passes=max_passes, start=start)
    with client_for(workers, cluster):
        done = fit_run(
            store,
            run,
            components=components,
            metric=metric,
            recipe=how,
            device=device,
            overwrite=overwrite,
            selection={"min_members": min_members} if min_members > 2 else None,
            where=limits_of(where or []),
            default_cuts=not no_cuts,
            pairs=pairs,
            pair_weights=parse_weights(pair_weight or []),
            progress=lambda text: console.print(escape(text), highlight=False),
        )
    stages = done.manifest["stages"]
    facts = stages["metric"]["facts"]
    seconds = perf_counter() - began
    basis = stages["ppca"]["facts"]
    colour = "green" if basis.get("converged") else "yellow"
    if basis.get("verdict"):
        console.print(f"[{colour}]basis {escape(basis['verdict'])}[/]", highlight=False)
    if components == "auto":
        console.print(escape(stages["components"]["facts"]["verdict"]), highlight=False)
    alone = stages["select"]["facts"]["n_clusters"] < 2
    following = shlex.join(["siblings", "STAR_ID", "--run", str(run)] if alone else ["evaluate", "--run", str(run)])
    if alone:
        console.print(
            "[yellow]one cluster[/]: there are distances of stars, but neither rates nor chances to be siblings, which "
            "take clusters that the metric has not seen",
            highlight=False,
        )
    console.print(f"[green]fitted[/] in {seconds:.1f} s; next: chemscale rsca {escape(following)}", highlight=False)
    if json:
        echo_json(
            {
                "run": str(done.path),
                "components": stages["components"]["facts"]["components"] if components == "auto" else components,
                "metric": metric,
                "basis": basis,
                "scale": facts["scale"],
                "selection": stages["select"]["facts"],
                "seconds": seconds,
            }
        )


def evaluate(
    run: RunDir,
    n_features: Annotated[int, typer.Option("--n-features", min=1, help="Dimensions kept for `rsca_top`.")] = 3,
    json: AsJson = False,
) -> None:
    """Doppelganger rates, leave-one-cluster-out: how often a field star looks as alike as a sibling.

    Example: chemscale rsca evaluate --run run --n-features 3 --json
    """
    from rich.table import Table

    from chemscale.cli import console, echo_json
    from chemscale.rsca.evaluate import evaluate_run
    from chemscale.rsca.registry import titles

    result = evaluate_run(run, n_features=n_features)
    table = Table("representation", "doppelganger rate", box=None)
    names = titles() | {"rsca_top": f"RSCA, top {n_features}"}
    for key, name in names.items():
        if result.get(key) is not None:
            table.add_row(f"spectra, {name}", f"{result[key]:.4f}")
    for name, rates in result["abundances"].items():
        for method in ("raw", "rsca"):
            table.add_row(f"abundances, {name} ({len(rates['species'])}), {method}", f"{rates[method]:.4f}")
    console.print(table)
    for name, (value, error) in result["differences"].items():
        console.print(f"{name} = {value:+.4f} +- {error:.4f}", highlight=False)
    for name, sides in result["ranges"].items():
        field, members = (" to ".join(f"{v:.4g}" for v in (sides[s][0], sides[s][2])) for s in ("field", "members"))
        console.print(
            f"{name}: field {field}, members {members} (5 to 95 %); {sides['field_inside']:.0%} of the field among the "
            "members'",
            highlight=False,
        )
    best = result["recommended"]
    kept = f", top {best['n_features']}" if best["metric"] == "paper" else ""
    console.print(
        f"[bold]recommended:[/] {best['metric']}{kept}, rate {best['rate']:.4f} ({best['why']})", highlight=False
    )
    cuts = " and ".join(result["cuts"]) or "no cut"
    console.print(
        f"{result['n_field']:,} field stars, {result['n_members']} members of {result['n_clusters']} clusters; "
        f"pairs of like {cuts}; leave-one-cluster-out",
        highlight=False,
    )
    if json:
        echo_json(result)


def neighbours(
    run: RunDir,
    k: Annotated[int, typer.Option("--k", min=1, help="Neighbours of each star.")] = 10,
    metric: Metric = "best",
    method: Annotated[
        str, typer.Option("--method", help="exact; with the extra `index` also faiss (exact), approximate.")
    ] = "exact",
    json: AsJson = False,
) -> None:
    """Write RUN/siblings.zarr: the k nearest stars of every star.

    Example: chemscale rsca neighbours --run run --k 10
    """
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.rsca.siblings import write_neighbours

    path = write_neighbours(run, k, metric=metric, method=method)
    console.print(f"[green]wrote[/] {escape(path)}", highlight=False)
    if json:
        echo_json({"table": path, "k": k})


def nuisance(
    run: RunDir,
    covariate: Annotated[
        str, typer.Option("--covariate", help="Per-star variable, e.g. extinction.")
    ] = "radial_velocity",
    groups: Annotated[int, typer.Option("--groups", min=2, help="Groups of like covariate.")] = 20,
    remove: Annotated[
        int | None, typer.Option("--remove", min=0, help="Axes to remove; by default the marked ones.")
    ] = None,
    n_features: Annotated[int, typer.Option("--n-features", min=1, help="Dimensions kept.")] = 3,
    json: AsJson = False,
) -> None:
    """Find the hyperplane a covariate marks (RSCA on groups of like covariate) and what removing it brings.

    Example: chemscale rsca nuisance --run run --covariate radial_velocity
    """
    from rich.table import Table

    from chemscale.cli import console, echo_json
    from chemscale.rsca.nuisance import nuisance_run

    report = nuisance_run(run, covariate=covariate, n_groups=groups, n_remove=remove, n_features=n_features)
    table = Table("", "RSCA", f"RSCA, top {n_features}", "largest correlation", box=None)
    for when in ("before", "after"):
        r = report[when]
        worst = max((abs(c) for c in r["correlation"]), default=float("nan"))
        table.add_row(when, f"{r['rsca']:.4f}", f"{r['rsca_top']:.4f}", f"{worst:.3f}")
    console.print(table)
    console.print(f"{report['removed']} of the axes follow {covariate}", highlight=False, markup=False)
    if json:
        echo_json(report)


def elements(
    run: RunDir,
    windows: Annotated[
        str | None,
        typer.Option("--windows", metavar="FILE", help="CSV: element,low,high in Angstrom; lines; abundances."),
    ] = None,
    components: Annotated[int, typer.Option("--components", min=1, help="Components of each element's basis.")] = 6,
    n_features: Annotated[int, typer.Option("--n-features", min=1, help="Features kept of each element.")] = 2,
    json: AsJson = False,
) -> None:
    """Likeness in single elements: RSCA on windows around their lines; writes RUN/elements.zarr.

    Without a table windows are those of the atomic lines that ship, where these reach the grid (15,140 to 16,960
    Angstrom and the optical), else where spectra follow the survey's own abundances.

    Example: chemscale rsca elements --run run --windows lines.csv
    """
    from rich.markup import escape
    from rich.table import Table

    from chemscale.cli import console, echo_json
    from chemscale.rsca.elements import elements_run

    report = elements_run(run, windows=windows, components=components, n_features=n_features)
    console.print(f"windows: {report['source']}", highlight=False)
    heads = ("|r|, [X/H]", "R beyond [Fe/H]", "|r|, v and A_K")
    table = Table("element", "pixels", "rate", *heads, box=None)
    for name, e in report["elements"].items():
        numbers = [_shown(e[k]) for k in ("correlation", "own", "leak")]
        table.add_row(escape(name), str(e["pixels"]), f"{e['rate']:.4f} +- {e['rate_error']:.4f}", *numbers)
    console.print(table)
    alike: dict[str, list[str]] = {}
    for name, reason in report["left_out"].items():
        alike.setdefault(reason, []).append(name)
    for reason, names in alike.items():
        console.print(f"[yellow]{escape(', '.join(names))} left out:[/] {escape(reason)}", highlight=False)
    if json:
        echo_json(report)


def _shown(value: float) -> str:
    return f"{value:.3f}" if value == value else "–"
