"""What a finished step amounts to, in one paragraph: the command line, manifest and report say the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chemscale.runtime.run import Run

#: Share of the last epochs that the trend of a training is read from.
TREND_SHARE = 0.25
#: Relative fall of the reconstruction over those epochs below which a training has settled.
SETTLED = 0.005
#: Rise of the held-out error above its minimum, relative, that counts as overfitting.
OVERFIT = 0.02


def training_verdict(curves: Sequence[Mapping[str, Any]], *, epochs: int | None = None) -> str:
    """Whether a training has settled and whether it overfits, with numbers, and what to change.

    Parameters
    ----------
    curves : sequence of mapping
        Records of ``vae/curves.json``: `phase`, ``reconstruction_*`` (chi-square per pixel) and, where it was
        measured, `validation`, the same of held-out stars.
    epochs : int, optional
        Epochs that were asked for.
    """
    main = [c for c in curves if c.get("phase") == "main"] or list(curves)
    chi2 = np.array([np.mean([v for k, v in c.items() if k.startswith("reconstruction_")] or [np.nan]) for c in main])
    chi2 = chi2[np.isfinite(chi2)]
    if len(chi2) < 4:
        return f"{len(chi2)} epochs are too few to tell whether it settled; train longer with --epochs."
    tail = chi2[-max(4, int(len(chi2) * TREND_SHARE)) :]
    x = np.arange(len(tail))
    fall = -float(np.polyfit(x, tail, 1)[0]) * (len(tail) - 1) / float(tail.mean())
    told = f"chi-square per pixel {chi2[-1]:.3f} after {len(chi2)} epochs, "
    if fall > SETTLED:
        told += (
            f"still falling ({100 * fall:.1f} % over the last {len(tail)}): train longer with --epochs {2 * len(chi2)}"
        )
    else:
        told += f"settled (changed by {-100 * fall:+.1f} % over the last {len(tail)})"
    held = np.array([c["validation"] for c in main if isinstance(c.get("validation"), int | float)])
    if len(held) < 2:
        return told + "."
    rise = float(held[-1] / held.min() - 1)
    if rise > OVERFIT:
        return (
            f"{told}; held-out error {held[-1]:.3f} is {100 * rise:.0f} % above its minimum: it overfits, "
            "train on more stars or stop earlier with --patience."
        )
    return f"{told}; held-out error {held[-1]:.3f}, at its minimum within {100 * max(rise, 0):.0f} %: no overfitting."


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
