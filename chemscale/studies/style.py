"""One look for every figure: journal column width, labelled axes with units, colours the colour-blind can tell apart.

Figures are built from :func:`figure` (no pyplot, so they work on any thread and without a display) and written by
:func:`save` as PDF and PNG; the numbers behind a figure go beside it through :func:`write_csv`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chemscale.schema import VARIABLES

#: Widths in inches of one and of two columns of ApJ and MNRAS.
COLUMN, PAGE = 3.4, 7.0

#: Okabe & Ito (2008): distinguishable with every common colour vision deficiency.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "yellow": "#F0E442",
    "black": "#000000",
}
#: Order in which lines of one panel take colours, markers and dashes: never told apart by colour alone.
CYCLE = tuple(COLOURS[c] for c in ("blue", "vermilion", "green", "purple", "orange", "sky", "black"))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), "-", "--")
#: Perceptually uniform map for densities and labels.
SEQUENTIAL = "viridis"
FIELD, MEMBERS = "#7A7A7A", COLOURS["orange"]

_RC: Any = {
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": cycler(color=CYCLE),
    "lines.linewidth": 1.1,
    "lines.markersize": 3.2,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": True,
    "ytick.minor.visible": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 300,
    "figure.dpi": 150,
    "pdf.fonttype": 42,  # text stays text: journals refuse Type 3 fonts
    "image.cmap": SEQUENTIAL,
}

_SYMBOLS = {
    "teff": r"$T_{\rm eff}$",
    "logg": r"$\log g$",
    "fe_h": "[Fe/H]",
    "alpha_m": r"[$\alpha$/M]",
    "c_fe": "[C/Fe]",
    "snr": "signal-to-noise ratio",
    "radial_velocity": r"$v_{\rm rad}$",
    "velocity_scatter": "velocity scatter",
    "extinction": r"$A_K$",
    "wavelength": "wavelength",
}
_UNITS = {"Angstrom": r"$\rm\AA$", "km/s": r"km s$^{-1}$"}


def label(name: str) -> str:
    """Axis label of a survey variable: symbol and unit, from the data contract."""
    spec = VARIABLES.get(name)
    text = _SYMBOLS.get(name, name.replace("_", " "))
    unit = spec.units if spec else ""
    return f"{text} ({_UNITS.get(unit, unit)})" if unit else text


@contextmanager
def context() -> Iterator[None]:
    """Matplotlib settings of the house, for the time of a ``with`` block."""
    with mpl.rc_context(_RC):
        yield


def figure(width: str | float = "column", aspect: float = 0.72, nrows: int = 1, ncols: int = 1, **kwargs: Any) -> Any:
    """A figure at journal width and its axes.

    Parameters
    ----------
    width : "column", "page" or float
        Width in inches, or one of the two journal widths.
    aspect : float
        Height over width of the whole figure.
    nrows, ncols, **kwargs
        As for ``Figure.subplots`` (`sharex`, `squeeze`, ...).

    Returns
    -------
    (Figure, Axes or array of Axes)
    """
    inches = {"column": COLUMN, "page": PAGE}.get(width, width) if isinstance(width, str) else width
    fig = Figure(figsize=(float(inches), float(inches) * aspect), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(nrows, ncols, **kwargs)


def panel_letter(ax: Any, text: str, *, where: str = "upper left", colour: str = "black") -> None:
    """Short text inside a corner of a panel, on a pale ground so that points do not hide it."""
    x, ha = (0.04, "left") if "left" in where else (0.96, "right")
    y, va = (0.95, "top") if "upper" in where else (0.05, "bottom")
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    ax.text(x, y, plain(text), transform=ax.transAxes, ha=ha, va=va, fontsize=7, color=colour, bbox=box, zorder=9)


def rate_axis(axis: Any) -> None:
    """Logarithmic axis (``ax.yaxis`` or ``ax.xaxis``) with plain numbers, and enough of them when it spans little."""
    ax = axis.axes
    vertical = axis is ax.yaxis
    (ax.set_yscale if vertical else ax.set_xscale)("log")
    low, high = ax.get_ylim() if vertical else ax.get_xlim()
    decades = np.log10(high / max(low, 1e-300))
    marks = (1, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 1.8 else (1,)
    axis.set_major_locator(mpl.ticker.LogLocator(subs=marks, numticks=15))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}" if v >= 1e-4 else f"{v:.0e}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def plain(text: Any) -> str:
    """Catalogue text drawn as it is: a dollar sign must not start a formula."""
    return str(text).replace("$", r"\$")


def density(ax: Any, x: np.ndarray, y: np.ndarray, *, bins: int = 120, colour: str = "Greys") -> None:
    """Field stars as a logarithmic two-dimensional histogram within the central 99.8 % of both axes."""
    good = np.isfinite(x) & np.isfinite(y)
    if not good.any():
        return
    ranges = [spread(x[good]), spread(y[good])]
    counts, xe, ye = np.histogram2d(x[good], y[good], bins=bins, range=ranges)
    mesh = np.ma.masked_equal(counts.T, 0)
    ax.pcolormesh(
        xe, ye, mesh, norm=mpl.colors.LogNorm(vmin=0.5, vmax=max(counts.max(), 2)), cmap=colour, rasterized=True
    )
    ax.set_xlim(*ranges[0])
    ax.set_ylim(*ranges[1])


def spread(values: np.ndarray, inner: float = 0.998, margin: float = 0.05) -> tuple[float, float]:
    """Limits that hold the central fraction `inner` of `values` and a margin on both sides."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [(1 - inner) / 2, (1 + inner) / 2])
    pad = margin * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def save(fig: Figure, folder: str | os.PathLike[str], name: str = "figure") -> list[Path]:
    """Write ``name.pdf`` and ``name.png`` into `folder`."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = [target / f"{name}.pdf", target / f"{name}.png"]
    fig.savefig(files[0], metadata={"CreationDate": None})
    fig.savefig(files[1])
    return files


def write_csv(path: str | os.PathLike[str], table: Mapping[str, Any]) -> Path:
    """Write columns of equal length as CSV; NaN becomes an empty cell.

    Raises
    ------
    ValueError
        Columns of unequal length.
    """
    columns = {name: np.atleast_1d(np.asarray(values)) for name, values in table.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of unequal length: {lengths}")
    target = Path(path)
    with target.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows(zip(*(_cells(v) for v in columns.values()), strict=True))
    return target


def _cells(values: np.ndarray) -> list[Any]:
    if values.dtype.kind == "f":
        return ["" if not np.isfinite(v) else f"{v:.7g}" for v in values.astype(float)]
    return values.tolist()
