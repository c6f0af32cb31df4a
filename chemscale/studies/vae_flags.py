"""Flagged stars in abundance space, with precision and recall (Figure 5 and Table 2 of the VAE paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, held
from chemscale.vae.evaluate import CLASSES, LABELS, class_truth, precision_recall
from chemscale.vae.flags import PRESETS, PRINTED, apply

#: Class -> (x, y) of its panel.
PANELS = {"cemp": ("fe_h", "c_fe"), "alpha_poor": ("fe_h", "alpha_fe")}
#: Plain cuts in the table -> end of their numbers' names.
PLAIN = {"plain cuts": "_plain", "plain cuts as printed": "_printed"}
TITLES = {"cemp": "carbon-enhanced metal-poor", "alpha_poor": r"$\alpha$-poor metal-poor"}


def compute(context: StudyContext) -> StudyResult:
    """Verdicts on held-out stars, calibrated on the others, at several purities."""
    found = held(context, "fe_h")
    out = found.out
    given = {LABEL: np.where(out, np.nan, found.labels[name]) for _, LABEL, name in found.pairs}
    shown = [c for c, axes in PANELS.items() if all(a in found.labels for a in axes)]
    if not shown:
        raise DataError("no class can be judged: [C/Fe] and [alpha/Fe] are both unknown", "ingest abundances as labels")
    rows: list[tuple[Any, ...]] = []
    purities = [None, *(float(p) for p in str(context.settings["purities"]).split(",") if p.strip())]
    for purity in purities:
        verdict = apply(found.ds, found.names, abundances=given, purity=purity)
        for name in shown:
            truth = class_truth(found.labels, CLASSES[name])
            assert truth is not None
            quality = precision_recall(verdict.member[name][out], truth[out])
            rows.append((name, "own" if purity is None else f"{purity:g}", *quality.values()))
        if purity is None:
            first = verdict
    # Table 2: cuts in standard deviations of the population, labels give the signs alone
    rules = {f"{n}_plain": {"sigma": PRESETS[n]["sigma"]} for n in shown}
    rules |= {f"{n}_printed": {"sigma": PRINTED[n]} for n in shown}
    plain = apply(found.ds, found.names, rules=rules, abundances=given)
    for name in shown:
        truth = class_truth(found.labels, CLASSES[name])
        assert truth is not None
        for kind, after in PLAIN.items():
            quality = precision_recall(plain.member[f"{name}{after}"][out], truth[out])
            rows.append((name, kind, *quality.values()))
    fig, axes = style.figure(ncols=len(shown), width=style.PAGE, aspect=0.45, squeeze=False)
    for ax, name in zip(axes[0], shown):
        a, b = PANELS[name]
        x, y, flagged = found.labels[a][out], found.labels[b][out], first.member[name][out]
        ax.plot(x[~flagged], y[~flagged], ".", ms=1.5, color=style.COLOURS["blue"], alpha=0.3, rasterized=True)
        ax.plot(x[flagged], y[flagged], "^", ms=2.5, color=style.COLOURS["vermilion"], label="flagged")
        (_, right), (side, edge) = CLASSES[name][a], CLASSES[name][b]
        ax.set_xlim(*style.spread(x))
        ax.set_ylim(*style.spread(y))
        (x0, _), (y0, y1) = ax.get_xlim(), ax.get_ylim()
        low, top = (edge, y1) if side == ">" else (y0, edge)
        ax.fill_between([x0, right], low, top, color=style.COLOURS["vermilion"], alpha=0.12, lw=0, zorder=-1)
        ax.set_xlabel(f"{SYMBOLS[a]} (dex)")
        ax.set_ylabel(f"{SYMBOLS[b]} (dex)")
        own = next(r for r in rows if r[0] == name and r[1] == "own")
        both = {"precision": float(own[2]), "recall": float(own[3])}
        known = [f"{word} {v:.2f}" for word, v in both.items() if np.isfinite(v)]
        style.panel_letter(ax, ", ".join(known) or "no such stars, none flagged", where="upper right")
        ax.set_title(TITLES[name])
    axes[0][0].legend(loc="lower left")
    keys = ("class", "purity_asked", "precision", "recall", "flagged", "true")
    numbers: dict[str, Any] = {}
    for r in rows:
        if (end := {"own": "", **PLAIN}.get(r[1])) is not None:
            numbers |= {f"{r[0]}_precision{end}": r[2], f"{r[0]}_recall{end}": r[3]}
    return StudyResult(
        figure=fig,
        table={k: [r[i] for r in rows] for i, k in enumerate(keys)},
        columns={
            "class": "class of stars",
            "purity_asked": (
                "purity asked for; own: the class's preset; plain cuts: in sigma, where the definition lies; as "
                "printed: as the paper's text has them"
            ),
            "precision": "fraction of the flagged held-out stars that belong to the class",
            "recall": "fraction of the class's held-out stars that are flagged",
            "flagged": "held-out stars flagged",
            "true": "held-out stars in the class by their labels",
        },
        numbers=numbers,
        caption=(
            f"Held-out stars by their true abundances; triangles are flagged, the shaded corner is the definition. "
            f"Latents calibrated on {int((~out).sum()):,} other stars ({', '.join(sorted(LABELS))}). Plain cuts: "
            + "; ".join(_cuts(n, PRESETS[n]["sigma"]) for n in shown)
            + "; as the paper prints them: "
            + "; ".join(_cuts(n, PRINTED[n]) for n in shown)
            + "."
        ),
    )


def _cuts(name: str, sigma: Mapping[str, tuple[str, float]]) -> str:
    """A class's plain cuts in words, such as `alpha poor: metal < 0.4 sigma and alpha < -1.5 sigma`."""
    cuts = [f"{latent} {side} {position:g} sigma" for latent, (side, position) in sigma.items()]
    return f"{name.replace('_', ' ')}: {' and '.join(cuts)}"


STUDY = Study(
    "vae_flags",
    "Flags in abundance space",
    "Signor et al. 2025, Figure 5 and Table 2",
    compute,
    {"purities": "0.5,0.7,0.8,0.9,0.95,0.97"},
)
