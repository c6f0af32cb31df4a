"""Precision and recall of the flags beside what the spectra could give at all.

    python benchmarks/vae_flags.py --emulator lowres_emulator.npz --run RUN --store STORE --out results/vae_flags

The limit: every star's posterior of its five labels from the Fisher matrix of its own noisy spectrum (all pixels, the
emulator known exactly), noisy Teff and log g, and the catalogue's true distribution of abundances as prior; stars are
flagged by the probability this posterior gives to the class. No method that does not know the catalogue better can
beat it on average.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "vae"))
from vae_catalogue import CATALOGUES, draw_labels, emulate

from chemscale.studies import style
from chemscale.survey.store.open import open_survey
from chemscale.vae import flags, pipeline
from chemscale.vae.evaluate import CLASSES, class_truth, label_columns

#: Columns of the labels, and steps of their numerical derivatives.
NAMES = ("teff", "logg", "fe_h", "c_fe", "alpha_fe")
STEPS = (20.0, 0.05, 0.04, 0.08, 0.04)
PURITY = {name: flags.PRESETS[name]["purity"] for name in CLASSES}


def limit(emulator: Path, kind: str, n: int, seed: int = 77) -> tuple[dict, dict]:
    """Class probabilities and memberships of n stars, by the information in their spectra; (n,) each."""
    labels = draw_labels(n, seed, CATALOGUES[kind])
    rng = np.random.default_rng([seed, 2])
    snr = np.clip(rng.normal(50, 10, n), 5, None)
    slopes = []
    for k, step in enumerate(STEPS):
        up, down = labels.copy(), labels.copy()
        up[:, k] += step
        down[:, k] -= step
        slopes.append((emulate(emulator, up)[1] - emulate(emulator, down)[1]) / (2 * step))
    jacobian = np.stack(slopes, 2)
    data = np.einsum("npi,npj->nij", jacobian, jacobian) * (snr**2)[:, None, None]
    for k in (0, 1):
        data[:, k, k] += 1 / (0.02 * labels[:, k]) ** 2
    middle, width = CATALOGUES[kind]
    spread = np.array([0.57, width, 0.15])
    prior = np.linalg.inv(np.array([[1, -0.17, -0.3], [-0.17, 1, 0.051], [-0.3, 0.051, 1]]) * np.outer(spread, spread))
    # an estimate scatters about the truth as the data allow; the prior then pulls it back
    noise = np.linalg.solve(np.swapaxes(np.linalg.cholesky(data), 1, 2), rng.standard_normal((n, 5, 1)))[:, :, 0]
    right = np.einsum("nij,nj->ni", data, labels + noise)
    right[:, 2:] += prior @ np.array([-1.23, middle, 0.22])
    both = data.copy()
    both[:, 2:, 2:] += prior
    covariance = np.linalg.inv(both)
    mean = np.einsum("nij,nj->ni", covariance, right)[:, 2:]
    root = np.linalg.cholesky(covariance[:, 2:, 2:])
    draws = {x: np.empty((n, 2000), np.float32) for x in NAMES[2:]}
    for start in range(0, n, 500):
        part = slice(start, start + 500)
        sample = mean[part, None] + rng.standard_normal((len(mean[part]), 2000, 3)) @ np.swapaxes(root[part], 1, 2)
        for k, name in enumerate(NAMES[2:]):
            draws[name][part] = sample[:, :, k]
    chance = {c: class_truth(draws, cuts).mean(1) for c, cuts in CLASSES.items()}
    return chance, {c: class_truth(dict(zip(NAMES, labels.T)), cuts) for c, cuts in CLASSES.items()}


def curve(probability: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(precision, recall) of the sets of most probable stars, from small to large."""
    hits = np.cumsum(truth[np.argsort(-probability, kind="stable")])
    return hits / np.arange(1, len(hits) + 1), hits / truth.sum()


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", type=Path, required=True)
    parser.add_argument("--kind", default="A", choices=list(CATALOGUES))
    parser.add_argument("--stars", type=int, default=6000)
    parser.add_argument("--run", type=Path, nargs="*", default=[])
    parser.add_argument("--store", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True, help="path of the JSON and PNG, without ending")
    args = parser.parse_args()
    found = {"limit of the spectra": limit(args.emulator, args.kind, args.stars)}
    points: dict[str, dict] = {}
    for run, store in zip(args.run, args.store):
        labels = label_columns(open_survey(store))
        _, _, out = pipeline.latents(run)
        result = flags.apply(*_latents(run), abundances=_labelled(labels, out))
        chance = {c: result.probability[c][out] for c in CLASSES}
        truth = {c: class_truth(labels, cuts)[out] for c, cuts in CLASSES.items()}
        found[run.name] = chance, truth
        points[run.name] = {
            c: (float(truth[c][m].mean()), float(truth[c][m].sum() / truth[c].sum()))
            for c, m in ((c, result.member[c][out]) for c in CLASSES)
        }
    fig, axes = style.figure("page", aspect=0.42, ncols=2)
    summary: dict = {"kind": args.kind, "at_purity": {}, "flagged": points}
    for ax, name in zip(axes, CLASSES):
        for j, (label, (chance, truth)) in enumerate(found.items()):
            precision, recall = curve(chance[name], truth[name])
            good = np.flatnonzero(precision >= PURITY[name])
            best = float(recall[good[-1]]) if good.size else 0.0
            summary["at_purity"].setdefault(name, {})[label] = {"purity": PURITY[name], "recall": best}
            ax.plot(recall[20:], precision[20:], color=style.CYCLE[j], ls=style.DASHES[j], label=label)
            if label in points:
                ax.plot(*points[label][name][::-1], "o", ms=4, color=style.CYCLE[j])
        ax.axhline(PURITY[name], color="0.5", lw=0.6, ls=":")
        ax.set(xlabel="recall", title=flags.PRESETS[name]["title"], xlim=(0, 1), ylim=(0.5, 1.01))
    axes[0].set_ylabel("precision")
    axes[0].legend(loc="lower left")
    fig.savefig(args.out.with_suffix(".png"), dpi=150)
    args.out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


def _latents(run: Path):
    ds, _, _ = pipeline.latents(run)
    return ds, [str(x) for x in ds["latent"].values]


def _labelled(labels: dict, out: np.ndarray) -> dict:
    pairs = {"metal": "fe_h", "alpha": "alpha_fe", "carbon": "c_fe"}
    return {latent: np.where(out, np.nan, labels[name]) for latent, name in pairs.items()}


if __name__ == "__main__":
    main()
