"""The most scaled RSCA features against chemistry and radial velocity (Figure 3)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult

_LABELS = ("fe_h", "alpha_m", "c_fe", "teff", "logg", "snr", "radial_velocity", "extinction")
#: Field stars used for correlations: their error is then below 0.003.
_MAX_STARS = 150_000


def correlation(x: np.ndarray, y: np.ndarray, rank: bool = False) -> tuple[float, float, int]:
    """Pearson (or Spearman) correlation, its standard error (Fisher's z) and the number of stars with both values."""
    good = np.isfinite(x) & np.isfinite(y)
    n = int(good.sum())
    if n < 10 or np.ptp(x[good]) == 0 or np.ptp(y[good]) == 0:
        return np.nan, np.nan, n
    a, b = (rankdata(v[good]) if rank else v[good] for v in (x, y))
    r = float(np.corrcoef(a, b)[0, 1])
    return r, float((1 - r**2) / np.sqrt(max(n - 3, 1))), n


def compute(context: StudyContext) -> StudyResult:
    """Features of all field stars, fitted on every cluster, and their correlations with each label."""
    sample = context.sample
    rsca = sample.evaluation.fit("rsca")
    z = np.asarray(rsca.transform(sample.coords.astype(float)))
    field, members = z[: sample.n_field], z[sample.n_field :]
    shown = [n for n in _LABELS if n in sample.labels and np.isfinite(sample.field(n)).any()]
    table: dict[str, list] = {k: [] for k in ("feature", "label", "pearson", "pearson_error", "spearman", "n_stars")}
    n_features = min(int(context.settings["n_features"]), z.shape[1])
    step = max(1, sample.n_field // _MAX_STARS)
    for f in range(n_features):
        for name in shown:
            x, y = field[::step, f], sample.field(name)[::step]
            r, e, n = correlation(x, y)
            rank = correlation(x, y, rank=True)[0]
            for key, value in zip(table, (f + 1, name, r, e, rank, n), strict=True):
                table[key].append(value)
    panels = [(0, "fe_h"), (1, "fe_h"), (2, "fe_h"), (1, "alpha_m"), (3, "radial_velocity")]
    panels = [(f, n) for f, n in panels if f < z.shape[1] and n in shown] or [(0, n) for n in shown[:4]]
    fig, axes = style.figure("page", 0.26 if len(panels) > 3 else 0.33, 1, len(panels), squeeze=False)
    for ax, (f, name) in zip(axes[0], panels, strict=True):
        x = sample.field(name)
        style.density(ax, x, field[:, f])
        ax.plot(sample.members(name), members[:, f], ls="", marker="o", ms=2.2, color=style.MEMBERS, mew=0)
        ax.set_xlabel(style.label(name))
        ax.set_ylabel(f"feature {f + 1}")
        r = correlation(x[::step], field[::step, f])[0]
        style.panel_letter(ax, f"r = {r:.2f}")
    kept = min(3, z.shape[1])
    numbers: dict[str, float] = {}
    for name in ("fe_h", "alpha_m"):
        if name in shown:
            best = max(range(kept), key=lambda f: abs(correlation(field[::step, f], sample.field(name)[::step])[0]))
            numbers[f"best_{name}_feature"] = best + 1
            numbers[f"correlation_with_{name}"] = correlation(field[::step, best], sample.field(name)[::step])[0]
    for name in ("radial_velocity", "extinction"):
        if name in shown:
            leak = [abs(correlation(field[::step, f], sample.field(name)[::step])[0]) for f in range(kept)]
            numbers[f"largest_correlation_with_{name}_in_top_{kept}"] = max(leak)
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "feature": "RSCA feature, 1 = most scaled",
            "label": "survey label",
            "pearson": "linear correlation over field stars",
            "pearson_error": "its standard error",
            "spearman": "rank correlation",
            "n_stars": "field stars with both values",
        },
        numbers=numbers,
        caption=(
            "The most scaled features against chemistry, and the fourth against radial velocity: field stars as a "
            "logarithmic density (grey), cluster members in orange; r is the correlation over field stars."
        ),
    )


STUDY = Study(
    "features",
    "What the features measure",
    "de Mijolla & Ness 2021, Figure 3",
    compute,
    {"n_features": 10},
)
