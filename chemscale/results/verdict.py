"""What a finished step amounts to, in one paragraph: the command line, manifest and report say the same words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chemscale.display import counted
from chemscale.runtime.run import Run

#: Share of the last epochs that the trend of a training is read from.
TREND_SHARE = 0.25
#: Relative fall or rise over those epochs below which a training has settled: as the learning rate goes to zero, every
#: training falls by about a per cent.
SETTLED = 0.02
#: Rise of the held-out error above its minimum, relative, that counts as overfitting.
OVERFIT = 0.02


def training_verdict(curves: Sequence[Mapping[str, Any]], *, overfit: float | None = None) -> str:
    """Whether a training has settled and whether it overfits, with numbers, and what to change.

    The main phase alone is judged, by the held-out stars where there are some: what w learns before and decoders learn
    afterwards are other sums.

    Parameters
    ----------
    curves : sequence of mapping
        Records of ``vae/curves.json``: `phase` (that of the main phase has none), ``reconstruction_*`` (chi-square per
        pixel) and, where it was measured, `validation`, the same of held-out stars.
    overfit : float, optional
        Chi-square of held-out stars over that of the stars trained on, as the guard over the axes measures it
        (:class:`chemscale.vae.alignment.Alignment`).
    """
    from chemscale.vae.alignment import MOST_OVERFIT

    main = [c for c in curves if c.get("phase", "main") == "main"]
    chi2 = np.array([np.mean([v for k, v in c.items() if k.startswith("reconstruction_")] or [np.nan]) for c in main])
    chi2 = chi2[np.isfinite(chi2)]
    held = np.array([c["validation"] for c in main if isinstance(c.get("validation"), int | float)])
    if len(chi2) < 4:
        return f"{len(chi2)} epochs are too few to tell whether it settled; train longer with --epochs."
    watched = held if len(held) >= 4 else chi2
    tail = watched[-max(4, int(len(watched) * TREND_SHARE)) :]
    x = np.arange(len(tail))
    fall = -float(np.polyfit(x, tail, 1)[0]) * (len(tail) - 1) / float(tail.mean())
    told = f"chi-square per pixel {chi2[-1]:.3f} after {len(chi2)} epochs"
    if len(curves) > len(main):
        told += f" of the main phase ({len(curves)} in all)"
    rise = float(held[-1] / held.min() - 1) if len(held) > 1 else 0.0
    if fall > SETTLED:
        told += f", still falling ({100 * fall:.1f} % over the last {len(tail)}): "
        told += f"train longer with --epochs {2 * len(chi2)}"
    elif fall >= -SETTLED:
        told += f", settled (changed by {-100 * fall:+.1f} % over the last {len(tail)})"
    elif rise <= OVERFIT:
        told += (
            f", rising ({-100 * fall:.1f} % over the last {len(tail)}), not settled: train again with another --seed, "
            "and look for spectra with absurd errors"
        )
    if len(held) < 2:
        return told + "."
    told += f"; held-out error {held[-1]:.3f}"
    if overfit is not None and overfit > MOST_OVERFIT:
        return f"{told}, {overfit:.2f} times that of the stars trained on: it overfits, train on more stars."
    if rise > OVERFIT:
        return (
            f"{told} is {100 * rise:.0f} % above its minimum: it overfits, "
            "train on more stars or stop earlier with --patience."
        )
    told += f", at its minimum within {100 * max(rise, 0):.0f} %"
    if overfit is not None and np.isfinite(overfit):
        told += f", {overfit:.2f} times that of the stars trained on"
    return f"{told}: no overfitting."


def inference_verdict(run: Run, summary: Mapping[str, Any], store: str = "") -> str:
    """How many stars have latents now, how many have none to speak of, and the next command.

    `store` is the survey that was inferred, by default the run's.
    """
    from chemscale.vae.product import PRODUCT, open_latents

    n, computed = int(summary["stars"]), int(summary["computed"])
    told = f"latents of all {n:,} stars"
    if computed < n:
        told += f", {n - computed:,} of them from before"
    if run.has(PRODUCT):
        used = np.asarray(open_latents(run.path / PRODUCT)["n_used"].values)
        if blank := int((used == 0).sum()):
            told += (
                f"; {blank:,} without a usable pixel have none (`chemscale info {_path(store or run.store)}` says why)"
            )
    return f"{told}; next: chemscale anomalies --run {_path(run.path)}"


def anomalies_verdict(result: Mapping[str, Any], where: object) -> str:
    """How many stars are anomalous, how many chance alone gives, what is mostly wrong, the next command."""
    n, blank = int(result["stars"]), int(result["causes"].get("no data", 0))
    found, chance = int(result["flagged"]) - blank, float(result["false_alarm"]) * max(int(result["stars"]) - blank, 0)
    told = f"{found:,} of {n:,} stars are anomalous; chance alone gives about {chance:,.0f}"
    if found > 5 * max(chance, 1):
        told += ": most of them are real, or the model does not fit this survey (see the training's verdict)"
    elif found <= 1.5 * chance:
        told += ": nothing stands out beyond it"
    causes = {k: int(v) for k, v in result["causes"].items() if k not in ("no data", "") and int(v)}
    if causes:
        most = max(causes, key=lambda k: causes[k])
        told += f"; the most frequent cause is {most.replace('_', ' ')} ({causes[most]:,})"
    if blank:
        told += f"; {blank:,} without a usable pixel or a finite score"
    return f"{told}; next: chemscale plot spectra {_path(where)} --anomalies 20 --out outliers.pdf"


def flags_verdict(result: Mapping[str, Any], where: object) -> str:
    """How many stars each class has against what the population holds, which to distrust, the next command."""
    parts = []
    for name, count in result["counts"].items():
        word = f"{name.replace('_', ' ')} {count:,} (about {result['expected'][name]:,.0f} expected)"
        parts.append(word + (": do not believe it" if name in result["suspect"] else ""))
    told = "; ".join(parts) or "no class could be flagged"
    if result["unjudged"]:
        told += f"; cannot be judged: {', '.join(n.replace('_', ' ') for n in result['unjudged'])}"
    if result.get("calibrated_on") in (None, "", "nothing"):
        told += "; cuts are in sigma: abundances of some stars (--labels CSV) make them dex"
    return f"{told}; next: chemscale export {_path(where)} --out stars.fits"


def siblings_verdict(found: Sequence[Any], run: object) -> str:
    """How many stars are near, how many speak for siblings, how sure that is, and the next command.

    Parameters
    ----------
    found : sequence of Dataset
        One a star, as :func:`chemscale.siblings` gives them.
    run : path
    """
    sizes = [int(ds.sizes["sibling"]) for ds in found]
    ds = found[int(np.argmax(sizes))]
    star, n = str(ds.attrs["star"]), max(sizes)
    by = f"by the {ds.attrs['metric']} metric ({ds.attrs['n_features']} features)"
    told = f"{n:,} stars near {star} {by}"
    if len(found) > 1:
        told = f"{sum(sizes):,} stars near {len(found):,} stars {by}; {star} has the most, {n:,}"
    if not n:
        return f"{told}: ask for more with --n or a larger --within, or with fewer cuts."
    told += f", distances {float(ds['distance'][0]):.3g} to {float(ds['distance'][-1]):.3g}"
    cluster = str(ds.attrs.get("star_cluster", ""))
    if cluster and "cluster" in ds:
        mates = int(np.sum(np.asarray(ds["cluster"].values).astype(str) == cluster))
        told += f"; {mates:,} of them are listed in its cluster {cluster}"
    if "probability" in ds:
        total = [float(ds[name].sum()) for name in ("probability", "probability_low", "probability_high")]
        told += f"; at this prior {total[0]:.2g} of them are siblings ({total[1]:.2g} to {total[2]:.2g})"
        chance, highest = np.asarray(ds["probability"].values, float), float(ds.attrs.get("highest_probability", 1.0))
        if alike := int(np.sum(chance > 0.98 * highest)) if highest < 0.98 else 0:
            told += f"; {alike:,} have the largest chance there is here, {highest:.2g}: nothing closer was ever counted"
        if ds.attrs.get("caution"):
            told += f"; {ds.attrs['caution']}"
    elif "log_ratio" in ds:
        ratio = np.asarray(ds["log_ratio"].values, float)
        told += (
            f"; {int((ratio > 0).sum()):,} are more like siblings than like the field (ln of the ratio above 0, "
            f"largest {ratio.max():.2f}); how many are siblings depends on how rare these are: --prior P"
        )
    else:
        told += f"; how sure that is, nobody measured yet: chemscale rsca evaluate --run {_path(run)}"
    pair = shlex.join([star, str(ds["star_id"].values[0])])
    return f"{told}; next: chemscale rsca pair {pair} --run {_path(run)}"


def study_verdict(done: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str], where: object) -> str:
    """How many studies were made in which time, the slowest, how many this run cannot answer, the next command."""
    seconds = {name: float(s["seconds"]) for name, s in done.items()}
    told = (
        f"{len(done)} studies in {sum(seconds.values()):.0f} s"
        if len(done) != 1
        else f"1 study in {sum(seconds.values()):.0f} s"
    )
    if len(done) > 1:
        slowest = max(seconds, key=lambda k: seconds[k])
        told += f", the slowest {slowest} ({seconds[slowest]:.0f} s)"
    if left_out:
        told += f"; {len(left_out)} that this run cannot answer, reasons above"
    return f"{told}; next: chemscale report --run {_path(where)}"


def ingest_verdict(summary: Any) -> str:
    """What became of the inputs, by reason, what was assumed, and the next command."""
    absent = summary.n_members_absent
    bad = summary.n_rejected - absent
    share = bad / max(summary.n_stars + bad, 1)
    told = f"{summary.n_stars:,} stars stored"
    if bad:
        told += f", {bad:,} inputs ({share:.1%}) left out, reasons above"
        told += ": look at them before you go on" if share > 0.05 else ""
    told += (
        f", {counted(len(summary.clusters), 'cluster')}"
        if summary.clusters
        else ", no cluster membership: RSCA needs --members"
    )
    return f"{told}; next: chemscale info {_path(summary.path)}"


def record(run: Run, stage: str, verdict: str) -> str:
    """Keep a step's verdict in the manifest, where the report finds it; returns it."""
    if stage in run.manifest["stages"]:
        run.manifest["stages"][stage]["verdict"] = verdict
        run.save()
    return verdict


def verdicts(run: Run) -> dict[str, str]:
    """Stage -> its verdict, for the stages that have one."""
    found = {}
    for name, entry in run.manifest.get("stages", {}).items():
        told = entry.get("verdict") or (entry.get("facts") or {}).get("verdict")
        if told:
            found[name] = str(told)
    return found


def _path(where: object) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(where))
