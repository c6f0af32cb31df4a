"""Figures to publish from the columns of a run: one column against another, features against labels.

Each function returns the figure and the table of its points; :func:`save` writes both, and a short program that makes
the figure again, to be changed at will.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chemscale.errors import DataError, InputError
from chemscale.results import catalogue
from chemscale.results.columns import Column, RunTable, gather
from chemscale.runtime.run import Run
from chemscale.studies import style
from chemscale.suggest import hint, known_ending

#: More field stars than this are drawn as a density, unless they are coloured.
MOST_POINTS = 5000
#: Axes that astronomers draw the other way round.
REVERSED = {"teff": "x", "vae_teff": "x", "logg": "y", "vae_logg": "y", "ra": "x"}
#: Endings of figures.
ENDINGS = (".pdf", ".png", ".svg")


@dataclass
class Plot:
    """A figure with the points it shows.

    Attributes
    ----------
    figures : list of matplotlib.figure.Figure
        One a page.
    table : mapping of str to array
        Columns of equal length: the points.
    program : str
        Python that makes the figure again.
    note : str
        One sentence on what is shown.
    """

    figures: list[Any]
    table: Mapping[str, Any]
    program: str = ""
    note: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def figure(self) -> Any:
        """The (first) Matplotlib figure."""
        return self.figures[0]


def names(run: Run | str | os.PathLike[str], join: str | None = None) -> list[Column]:
    """Every column that can be drawn: numbers and flags, not text."""
    return [c for c in _table(run, join).columns if c.kind != "text"]


def columns(
    run: Run | str | os.PathLike[str],
    x: str,
    y: str,
    *,
    colour: str | None = None,
    width: str | float = "column",
    join: str | None = None,
) -> Plot:
    """One column of the run's table against another: labels, features, latents, abundances, scores.

    Field stars are grey, members of clusters orange. More than :data:`MOST_POINTS` field stars become a logarithmic
    density. Axes hold the bulk of the stars (:func:`limits`); Teff and log g run as in a Kiel diagram.

    Parameters
    ----------
    run : Run or path
    x, y : str
        Columns, as ``chemscale export`` names them.
    colour : str, optional
        A third column, as colour of the points.
    width : "column", "page" or float
        Journal width, or inches.
    join : str, optional
        A catalogue of one's own, whose columns are then ``x_NAME``.

    Raises
    ------
    InputError
        No such column, or one of text.
    DataError
        No star has both values.

    Examples
    --------
    >>> from chemscale.results import plots
    >>> plots.columns("nowhere", "teff", "logg")
    Traceback (most recent call last):
    ...
    chemscale.errors.StoreError: nowhere is not a chemscale run (no manifest.json)...
    """
    table = _table(run, join)
    chosen = [c for c in (x, y, colour) if c]
    values = _read(table, chosen)
    good = np.all([np.isfinite(values[c]) for c in chosen], axis=0)
    if not good.any():
        raise DataError(f"no star has {' and '.join(chosen)}", "`chemscale plot columns RUN` lists what the run holds")
    stars = {k: v[good] for k, v in values.items()}
    member = stars["cluster"] != ""
    with style.context():
        fig, ax = style.figure(width, 0.85)
        if colour:
            _coloured(fig, ax, stars, x, y, colour, table)
        else:
            _field(ax, stars[x][~member], stars[y][~member])
        if member.any():
            look = {"mec": style.MEMBERS, "mfc": "none"} if colour else {"color": style.MEMBERS, "mew": 0}
            ax.plot(stars[x][member], stars[y][member], ls="", marker="D", ms=2.6, label="cluster members", **look)
            ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
        _axes(ax, x, y, stars[x], stars[y], table)
    r = _correlation(stars[x], stars[y])
    note = f"{good.sum():,} stars, {member.sum():,} of them in clusters; correlation {r:.3f}"
    call = _call(
        "columns", run, [x, y], {"colour": colour, "width": None if width == "column" else width, "join": join}
    )
    return Plot([fig], stars, call, note, {"correlation": r})


def features(
    run: Run | str | os.PathLike[str],
    labels: Sequence[str] = ("fe_h", "alpha_m", "teff", "radial_velocity"),
    *,
    n_features: int = 3,
    width: str | float = "page",
    join: str | None = None,
) -> Plot:
    """The most telling features (or latents) against labels of your own: Figure 3 of de Mijolla & Ness (2021).

    Parameters
    ----------
    run : Run or path
        With a metric; without one its latents are drawn.
    labels : sequence of str
        Columns, as ``chemscale export`` names them.
    n_features : int
        Rows of panels.
    width : "column", "page" or float
    join : str, optional
        A catalogue of one's own, whose columns are then ``x_NAME``.

    Raises
    ------
    InputError
        No such column.
    DataError
        The run has neither features nor latents.
    """
    table = _table(run, join)
    known = [c.name for c in table.columns]
    rows = [n for n in known if n.startswith("rsca_") and not n.endswith("_error")][:n_features]
    rows = rows or [n for n in known if n.startswith("latent_") and not n.endswith("_error")][:n_features]
    if not rows:
        raise DataError("the run has neither features nor latents", "run `chemscale rsca fit` or `chemscale vae infer`")
    values = _read(table, [*rows, *labels])
    member = values["cluster"] != ""
    found: dict[str, float] = {}
    with style.context():
        fig, axes = style.figure(
            width, 0.72 * len(rows) / max(len(labels), 2) + 0.05, len(rows), len(labels), squeeze=False, sharex="col"
        )
        for i, feature in enumerate(rows):
            for j, name in enumerate(labels):
                ax, a, b = axes[i, j], values[name], values[feature]
                _field(ax, a[~member], b[~member])
                ax.plot(a[member], b[member], ls="", marker="o", ms=1.8, color=style.MEMBERS, mew=0)
                r = found[f"{feature} {name}"] = _correlation(a[~member], b[~member])
                style.panel_letter(ax, f"r = {r:.2f}")
                _axes(ax, name, feature, a, b, table)
                if i < len(rows) - 1:
                    ax.set_xlabel("")
                if j:
                    ax.set_ylabel("")
    note = "field stars in grey, cluster members in orange; r is the correlation over field stars"
    call = _call("features", run, [list(labels)], {"n_features": n_features, "join": join})
    return Plot([fig], values, call, note, found)


def save(plot: Plot, out: str | os.PathLike[str]) -> list[Path]:
    """Write a figure, its points as ``.csv`` and the program that makes it as ``.py`` beside it.

    Parameters
    ----------
    plot : Plot
    out : path
        ``.pdf`` (pages in one file), ``.png`` or ``.svg`` (further pages as ``NAME-2.png``, ...).

    Returns
    -------
    list of Path
        Every file written, the figure first.

    Raises
    ------
    InputError
        Another ending.
    """
    target = known_ending(out, ENDINGS)
    target.parent.mkdir(parents=True, exist_ok=True)
    files = [target]
    with style.context():
        if target.suffix == ".pdf":
            from matplotlib.backends.backend_pdf import PdfPages

            with PdfPages(target, metadata={"CreationDate": None}) as pages:
                for fig in plot.figures:
                    pages.savefig(fig)
        else:
            for number, fig in enumerate(plot.figures, 1):
                file = target if number == 1 else target.with_name(f"{target.stem}-{number}{target.suffix}")
                fig.savefig(file)
                files += [file] if number > 1 else []
    files.append(style.write_csv(target.with_suffix(".csv"), plot.table))
    program = target.with_suffix(".py")
    program.write_text(_PROGRAM.format(name=target.name, call=plot.program), encoding="utf-8")
    return [*files, program]


_PROGRAM = '''"""Makes {name}; change it at will: plot.figure is a Matplotlib figure, plot.table holds the points."""

from chemscale.results import plots, spectra  # noqa: F401

plot = {call}
axis = plot.figure.axes[0]  # for example axis.set_title("...")
plots.save(plot, "{name}")
'''


def _call(function: str, run: Run | str | os.PathLike[str], arguments: list[Any], options: dict[str, Any]) -> str:
    """Source of the call that made a figure."""
    where = str(run.path if isinstance(run, Run) else run)
    words = [repr(where), *(repr(a) for a in arguments)]
    words += [f"{k}={v!r}" for k, v in options.items() if v is not None]
    module = "spectra" if function == "stars" else "plots"
    return f"{module}.{function}({', '.join(words)})"


def _table(run: Run | str | os.PathLike[str], join: str | None) -> RunTable:
    table = gather(run if isinstance(run, Run) else Run.open(run), features=10**6)
    if join is not None:
        catalogue.add(table, join)
    return table


def _read(table: RunTable, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of all stars with their identifiers and clusters; numbers as float64."""
    known = {c.name: c for c in table.columns}
    for name in wanted:
        if name not in known or known[name].kind == "text":
            drawable = [n for n, c in known.items() if c.kind != "text"]
            what = "is text" if name in known else "is not in this run"
            raise InputError(
                f"column {name!r} {what}",
                f"{hint(name, drawable, 'columns')}; `chemscale plot columns RUN` lists them with their meaning",
            )
    out = {"star_id": known["star_id"].read(0, table.n_stars)}
    cluster = known["cluster"].read(0, table.n_stars) if "cluster" in known else np.full(table.n_stars, "")
    if "role" in known:
        cluster = np.where(known["role"].read(0, table.n_stars) == "member", cluster, "")
    out["cluster"] = cluster
    blocks = [[known[n].read(a, min(a + 65536, table.n_stars)) for n in wanted] for a in range(0, table.n_stars, 65536)]
    for k, name in enumerate(wanted):
        out[name] = np.concatenate([np.asarray(b[k], dtype=np.float64) for b in blocks])
    return out


def _field(ax: Any, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) > MOST_POINTS:
        style.density(ax, x, y)
    else:
        ax.plot(
            x,
            y,
            ls="",
            marker=".",
            ms=1.6 if len(x) > 1000 else 2.6,
            color=style.FIELD,
            alpha=0.6,
            mew=0,
            rasterized=len(x) > 500,
        )


def _coloured(fig: Any, ax: Any, stars: dict[str, np.ndarray], x: str, y: str, colour: str, table: RunTable) -> None:
    low, high = np.quantile(stars[colour], [0.01, 0.99])  # one odd value must not wash out the others
    order = np.argsort(stars[colour], kind="stable")
    drawn = ax.scatter(
        *(stars[k][order] for k in (x, y)), c=stars[colour][order], s=1.5, lw=0, vmin=low, vmax=high, rasterized=True
    )
    fig.colorbar(drawn, ax=ax, label=title(colour, table), pad=0.02)


def _axes(ax: Any, x: str, y: str, a: np.ndarray, b: np.ndarray, table: RunTable) -> None:
    """Names, robust limits, and the direction that astronomers expect."""
    ax.set_xlabel(title(x, table))
    ax.set_ylabel(title(y, table))
    ax.set_xlim(*limits(a)[:: -1 if REVERSED.get(x) == "x" else 1])
    ax.set_ylim(*limits(b)[:: -1 if REVERSED.get(y) == "y" else 1])


def limits(values: np.ndarray) -> tuple[float, float]:
    """Limits of an axis: the central 99.8 %, but no farther than twelve robust standard deviations from the median."""
    low, high = style.spread(values)
    good = values[np.isfinite(values)]
    if good.size:
        first, middle, last = np.quantile(good, [0.16, 0.5, 0.84])
        reach = 6 * (last - first)
        if reach > 0:
            low, high = max(low, middle - reach), min(high, middle + reach)
    return float(low), float(high)


def title(name: str, table: RunTable) -> str:
    """Axis title of a column: symbol and unit."""
    special = {"vae_fe_h": "[Fe/H]", "vae_alpha_fe": r"[$\alpha$/Fe]", "vae_c_fe": "[C/Fe]"}
    if name.startswith("rsca_"):
        return f"RSCA feature {name.removeprefix('rsca_')}"
    if name.startswith("latent_"):
        return f"latent {name.removeprefix('latent_')}"
    if name.startswith("abundance_") and not name.endswith("_error"):
        return f"[{name.removeprefix('abundance_')}/H] (dex)"
    if name in special:
        return f"{special[name]} from latents (dex)"
    found = style.label(name)
    unit = next((c.unit for c in table.columns if c.name == name), "")
    return found if not unit or "(" in found else f"{found} ({unit})"


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    good = np.isfinite(x) & np.isfinite(y)
    if good.sum() < 3 or np.ptp(x[good]) == 0 or np.ptp(y[good]) == 0:
        return float("nan")
    return float(np.corrcoef(x[good], y[good])[0, 1])
