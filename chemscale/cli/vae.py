"""`chemscale vae ...`, `chemscale anomalies`, `chemscale flags`: the physics-constrained VAE."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from chemscale.cli.options import AsJson, Cluster, RunDir, Workers, client_for


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    vae = typer.Typer(
        help="Train, apply and evaluate the physics-constrained VAE.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    vae.command("train")(train)
    vae.command("infer")(infer)
    vae.command("evaluate")(evaluate)
    app.add_typer(vae, name="vae")
    app.command("anomalies")(anomalies)
    app.command("flags")(flags)


def train(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Survey store.")],
    run: RunDir,
    preset: str = typer.Option("default", "--preset", help="Recipe: default, quick or paper."),
    regions: str = typer.Option("", "--regions", help="Region set by name, or a JSON file; default by the grid."),
    groups: str = typer.Option("", "--groups", metavar="FILE", help="TOML of elements, windows and what each reads."),
    epochs: int = typer.Option(0, "--epochs", help="Epochs, at least; 0 = the preset's. Small surveys get more."),
    batch: int = typer.Option(0, "--batch", help="Stars a batch; 0 = the preset's."),
    seed: int = typer.Option(0, "--seed", help="Seed of weights, batches and noise."),
    components: int = typer.Option(0, "--components", help="Coordinates of the PPCA front end; 0 = the preset's."),
    held_out: float = typer.Option(0.3, "--held-out", help="Fraction of the stars kept away from training."),
    precision: str = typer.Option("float32", "--precision", help="float32 or bfloat16 (autocast)."),
    patience: int = typer.Option(0, "--patience", help="Stop after this many epochs without progress; 0 = never."),
    memory: float = typer.Option(4.0, "--memory", help="GB of training data held in memory; more is streamed."),
    device: str = typer.Option("", "--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one."),
    processes: int = typer.Option(1, "--processes", help="Data-parallel processes on this machine."),
    resume: bool = typer.Option(False, "--resume", help="Carry on from the last checkpoint, to the step."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a finished model."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Take a few steps, say how long the training would take."),
    json: AsJson = False,
) -> None:
    """Train on a survey with Teff and log g; labels of chemistry are never used.

    Examples:

    chemscale vae train survey.zarr --run run
    chemscale vae train survey.zarr --run run --preset paper --device cuda
    chemscale vae train survey.zarr --run run --resume
    """
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.results.verdict import record, training_verdict
    from chemscale.runtime.devices import choose_device
    from chemscale.runtime.observe import progress_bar
    from chemscale.runtime.run import Run
    from chemscale.vae import pipeline
    from chemscale.vae.presets import recipe

    choose_device(device or None)  # refuse a GPU that is not there before minutes of preparation
    settings: dict[str, Any] = {"seed": seed, "precision": precision, "patience": patience, "memory_gb": memory}
    settings |= {k: v for k, v in (("epochs", epochs), ("batch", batch)) if v}
    if dry_run:
        from chemscale.runtime.observe import human_seconds
        from chemscale.vae.timing import training_time

        front = {"n_components": components} if components else None
        given: dict[str, Any] = {"preset": preset, "model": front, "settings": settings, "held_out": held_out}
        given |= {"regions": regions or None, "groups": groups or None, "device": device or None}
        found = training_time(store, **given)
        console.print(
            f"about {human_seconds(found.seconds)} on this machine as busy as it is: {found.steps:,} steps on "
            f"{found.stars:,} stars; preparation {human_seconds(found.preparation)}, head start "
            f"{human_seconds(found.head_start)}, main phase {human_seconds(found.main)}, decoders "
            f"{human_seconds(found.decoders)}, errors and guard {human_seconds(found.afterwards)}; nothing was written",
            highlight=False,
            soft_wrap=True,
        )
        if json:
            echo_json(found.to_dict())
        return
    _, config, _ = recipe(preset, None, settings)
    total = config.label_pretrain_epochs + config.epochs + config.decoder_finetune_epochs
    with progress_bar(total, "training", unit="epochs") as bar:

        def show(entry: dict[str, Any]) -> None:
            bar.expect(entry["epochs"])  # a small survey is given more epochs than the preset's
            bar.advance()
            chi2 = [v for k, v in entry.items() if k.startswith("reconstruction_")]
            if chi2:
                held = entry.get("validation")
                other = f", held out {held:.3f}" if held is not None else ""
                bar.describe(f"training, chi-square per pixel {sum(chi2) / len(chi2):.3f}{other}")

        summary = pipeline.train(
            store,
            run,
            preset=preset,
            model={"n_components": components} if components else None,
            settings=settings,
            regions=regions or None,
            groups=groups or None,
            held_out=held_out,
            resume=resume,
            overwrite=overwrite,
            device=device or None,
            processes=processes,
            on_epoch=show,
        )
    if summary["done"]:
        console.print("this training is done; nothing was changed", highlight=False)
    for warning in summary.get("alignment", {}).get("warnings", ()):
        console.print(f"[yellow]the axes may be led astray:[/] {escape(warning)}", highlight=False)
    opened = Run.open(run)
    overfit = summary.get("alignment", {}).get("overfit")
    told = record(opened, "vae.train", training_verdict(opened.load_json("vae/curves.json"), overfit=overfit))
    doubtful = any(word in told for word in ("falling", "rising", "overfits"))
    console.print(f"[{'yellow' if doubtful else 'green'}]{told}[/]", highlight=False)
    console.print(
        f"trained on {summary['stars']:,} stars in {summary['seconds']:.0f} s, {summary['held_out']:,} held out; "
        f"next: chemscale vae infer {escape(shlex.quote(str(store)))} --run {escape(shlex.quote(str(run)))}",
        highlight=False,
    )
    if json:
        echo_json(summary)


def infer(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Survey store (the one trained on, or another on its grid).")
    ],
    run: RunDir,
    cluster: Cluster = None,
    device: str = typer.Option("", "--device", help="cpu, cuda, ...; default: a GPU if the worker has one."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Start anew instead of carrying on."),
    json: AsJson = False,
) -> None:
    """Latents, covariances and scores of every star, into RUN/latents.zarr; carries on where it was stopped.

    Examples:

    chemscale vae infer survey.zarr --run run
    chemscale vae infer survey.zarr --run run --cluster cluster.toml
    """
    from contextlib import nullcontext

    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.results.verdict import inference_verdict, record
    from chemscale.runtime.cluster import connect
    from chemscale.runtime.run import Run
    from chemscale.vae import pipeline

    with connect(cluster) if cluster else nullcontext() as client:
        summary = pipeline.infer(store, run, client=client, device=device or None, overwrite=overwrite)
    opened = Run.open(run)
    console.print(
        f"{summary['computed']:,} of {summary['stars']:,} stars in {summary['seconds']:.1f} s "
        f"({summary['stars_per_s']:,.0f} a second)",
        highlight=False,
    )
    told = inference_verdict(opened, summary, store)
    console.print(escape(record(opened, "vae.infer", told)), highlight=False, soft_wrap=True)
    if json:
        echo_json(summary)


def evaluate(
    run: RunDir,
    truth: str = typer.Option(
        "", "--truth", metavar="FILE", help="Noise-free spectra of a simulation (.npy, or .npz with flux_true)."
    ),
    against: str = typer.Option("", "--against", help="truth or labels; default: a simulated store's truth."),
    json: AsJson = False,
) -> None:
    """How the latents do against the survey's labels, on held-out stars; latents that are missing are inferred first.

    Example: chemscale vae evaluate --run run --json
    """
    from rich.markup import escape
    from rich.table import Table

    from chemscale.cli import console, echo_json
    from chemscale.vae import pipeline

    result = pipeline.evaluate(run, truth=truth or None, against=against)
    table = Table("what", "value", box=None)
    for key, value in result.items():
        if isinstance(value, float):
            table.add_row(_name(key), f"{value:.4f}")
    for name, value in result.get("relative_l2_classes", {}).items():
        table.add_row(f"relative L2 of {name.replace('_', ' ')} stars", f"{value:.4f}")
    for warning in result["alignment"]["warnings"]:
        console.print(f"[yellow]the axes may be led astray:[/] {escape(warning)}", highlight=False)
    for name, quality in result["flags"].items():
        both = [f"{quality[k]:.2f}" if quality[k] == quality[k] else "none" for k in ("precision", "recall")]
        table.add_row(f"{name.replace('_', ' ')}: precision, recall", ", ".join(both))
    console.print(table)
    console.print(
        f"{result['n_held_out']:,} held-out stars, judged against the {result['against']}; none: no star was flagged "
        "(precision), or there is none (recall)",
        highlight=False,
    )
    if json:
        echo_json(result)


def _name(key: str) -> str:
    """A number of the evaluation in words."""
    fixed = {
        "relative_l2": "relative L2 of the reconstruction without noise",
        "relative_l2_squared": "ratio of summed squares of error and flux (eq. A.5)",
        "relative_l2_observed": "relative L2 to the observed spectrum",
        "noise_l2": "relative L2 of the noise alone",
    }
    if key in fixed:
        return fixed[key]
    for start, words in (
        ("r2_", "R² of {} from the latents (0 = free of it)"),
        ("rmse_map_", "RMS error of {}, calibrated as for flags (dex)"),
        ("rmse_", "RMS error of {} (dex)"),
        ("r_", "correlation of {} with its latent"),
    ):
        if key.startswith(start):
            return words.format(key.removeprefix(start))
    return key.replace("_", " ")


def anomalies(
    run: RunDir,
    false_alarm: float = typer.Option(0.01, "--false-alarm", help="Fraction of clean stars that may be flagged."),
    top: int = typer.Option(1000, "--top", help="Stars in the ranked table."),
    workers: Workers = None,
    cluster: Cluster = None,
    json: AsJson = False,
) -> None:
    """Spectra the model has not seen the like of: scores, causes, a ranked table (RUN/anomalies.json).

    Example: chemscale anomalies --run run --false-alarm 0.01 --top 500
    """
    from rich.markup import escape
    from rich.table import Table

    from chemscale.cli import console, echo_json
    from chemscale.results.verdict import anomalies_verdict, record
    from chemscale.runtime.run import Run
    from chemscale.vae import pipeline

    with client_for(workers, cluster) as client:
        result = pipeline.anomalies(run, false_alarm=false_alarm, top=top, client=client)
    table = Table("star", "score", "cause", "chi2", "relative L2", box=None)
    blank = result["causes"].get("no data", 0)
    for row in [r for r in result["ranked"] if r["cause"] != "no data"][:10]:
        table.add_row(
            escape(row["star_id"]),
            f"{row['score']:.2f}",
            escape(row["cause"]),
            f"{row['chi2']:.2f}",
            f"{row['relative_l2']:.4f}",
        )
    console.print(
        f"{result['flagged'] - blank:,} of {result['stars']:,} stars beyond a false-alarm rate of {false_alarm:g}"
        + (f", and {blank:,} without a usable pixel or a finite score" if blank else ""),
        highlight=False,
    )
    if table.row_count:
        console.print(table)
    told = record(Run.open(run), "anomalies", anomalies_verdict(result, run))
    console.print(escape(told), highlight=False)
    if json:
        echo_json(result)


def flags(
    run: RunDir,
    labels: str = typer.Option(
        "", "--labels", metavar="CSV", help="star_id and columns named like the latents (dex): two stars or more."
    ),
    survey_labels: bool = typer.Option(
        True,
        "--survey-labels/--no-labels",
        help="Without --labels, calibrate on abundances the survey itself has; --no-labels: plain cuts in sigma.",
    ),
    purity: float = typer.Option(0.0, "--purity", help="Wanted fraction of true members; 0 = each class's own."),
    workers: Workers = None,
    cluster: Cluster = None,
    json: AsJson = False,
) -> None:
    """Chemically enhanced and depleted stars (RUN/flags.json): CEMP, alpha-poor metal-poor, k-sigma outliers.

    Example: chemscale flags --run run --labels stars_with_abundances.csv
    """
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.results.verdict import flags_verdict, record
    from chemscale.runtime.run import Run
    from chemscale.vae import pipeline
    from chemscale.vae.flags import read_labels

    given = read_labels(labels) if labels else None
    with client_for(workers, cluster) as client:
        result = pipeline.flags(run, labels=given, survey_labels=survey_labels, purity=purity or None, client=client)
    for name, count in result["counts"].items():
        console.print(
            f"{name}: {count:,} stars (cuts in {result['class_units'][name]}, calibrated on {result['calibrated_on']}; "
            f"the population holds about {result['expected'][name]:,.0f})",
            highlight=False,
        )
        if name in result["suspect"]:
            console.print(f"[yellow]{name}: far more than the population holds; do not believe it[/]", highlight=False)
    for name, reason in result["unjudged"].items():
        console.print(f"{name}: {escape(reason)}", highlight=False)
    told = record(Run.open(run), "flags", flags_verdict(result, run))
    console.print(f"[{'yellow' if result['suspect'] else 'green'}]{escape(told)}[/]", highlight=False)
    if json:
        echo_json(result)
