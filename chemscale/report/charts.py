"""Plotly figures of the report, and how arrays and text travel into the page."""

from __future__ import annotations

import base64
import html
import json
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from chemscale.rsca.registry import short_titles, titles
from chemscale.studies.style import COLOURS

#: Names readers see, in the order of the chart.
METHODS = titles() | {
    "abundances": "abundances (RSCA)",
    "abundances_subset": "7 abundances (RSCA)",
    "floor": "noise-free abundances",
}


def plain(text: Any) -> str:
    """Text from catalogues on its way into Plotly, which reads a little HTML."""
    return html.escape(str(text), quote=False)


def wrap(text: str, width: int = 24) -> str:
    """Text for Plotly in lines of about `width` characters."""
    return "<br>".join(plain(line) for line in textwrap.wrap(text, width, break_long_words=False))


def short(name: str, width: int = 22) -> str:
    """A name cut to fit below an axis."""
    return plain(name if len(name) <= width else name[: width - 1] + "…")


def script_json(obj: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(obj, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack(values: Any, dtype: str = "f4") -> dict[str, str]:
    """An array as base64 of little-endian numbers: "f4", "u2" or "i4"."""
    data = np.ascontiguousarray(values, dtype="<" + dtype)
    return {"dtype": dtype, "data": base64.b64encode(data.tobytes()).decode("ascii")}


def figure(fig: go.Figure) -> dict[str, Any]:
    """Data and layout of a Plotly figure as plain JSON, without its colour template (the page has its own)."""
    fig.update_layout(template=None)
    loaded = json.loads(pio.to_json(fig, validate=False))
    return {"data": loaded["data"], "layout": loaded["layout"]}


def rates(values: Mapping[str, float], errors: Mapping[str, float], best: str) -> dict[str, Any]:
    """Global rates by method on a logarithmic axis, with standard errors over clusters; the `best` one stands out."""
    names = [m for m in METHODS if m in values] + [m for m in values if m not in METHODS]
    x = [values[m] for m in names]
    span = [float(np.log10(min(x))) - 0.5, float(np.log10(max(x))) + 0.4]
    # on a logarithmic axis an error bar as long as the value would reach minus infinity
    minus = [min(errors.get(m, 0.0), 0.95 * values[m]) for m in names]
    fig = go.Figure(
        go.Scatter(
            x=x,
            y=[wrap(METHODS.get(m, m.replace("_", " "))) for m in names],
            mode="markers+text",
            text=[f"{v:.3f}" if v >= 0.001 else f"{v:.1e}" for v in x],
            textposition="top center",
            marker={
                "size": 13,
                "color": [COLOURS["vermilion"] if m == best else COLOURS["sky"] for m in names],
                "symbol": ["diamond" if m == best else "circle" for m in names],
            },
            error_x={"array": [errors.get(m, 0.0) for m in names], "arrayminus": minus, "color": "#8a8a8a"},
            hovertemplate="%{y}: %{x:.4f}<extra></extra>",
        )
    )
    fig.update_layout(
        height=110 + 46 * len(names),
        margin={"l": 10, "r": 10, "t": 20, "b": 50},
        xaxis={
            "type": "log",
            "title": {"text": "doppelganger rate"},
            "dtick": 1,
            "exponentformat": "power",
            "range": span,
        },
        yaxis={"range": [len(names) - 0.5, -0.75], "automargin": True},  # room for the number above the first point
    )
    return figure(fig)


def clusters(
    names: Sequence[str], columns: Mapping[str, Sequence[float]], sizes: Sequence[int], best: str
) -> dict[str, Any]:
    """Rate of each cluster by method; the `best` method stands out."""
    order = np.argsort([-s for s in sizes], kind="stable")
    labels = [f"{short(names[i])} ({sizes[i]})" if sizes[i] else short(names[i]) for i in order]
    look = {
        "raw": ("circle-open", COLOURS["sky"]),
        "scaled": ("square-open", COLOURS["green"]),
        "rsca": ("triangle-up", COLOURS["orange"]),
        best: ("diamond", COLOURS["vermilion"]),
    }
    others = cycle([("x", COLOURS["purple"]), ("cross", COLOURS["blue"]), ("star", COLOURS["green"])])
    table = np.array([[values[i] for i in order] for values in columns.values()], float)
    edge = 0.5 * np.min(table[table > 0], initial=1.0)  # zero has no place on a logarithmic axis: it sits at the edge
    fig = go.Figure()
    for method, y in zip(columns, table, strict=True):
        symbol, colour = look.get(method) or next(others)
        fig.add_trace(
            go.Scatter(
                x=labels,
                y=np.where(y == 0, edge, y),
                customdata=y,
                mode="markers",
                name=short_titles().get(method, method),
                marker={"symbol": symbol, "color": colour, "size": 9, "line": {"width": 1.5, "color": colour}},
                hovertemplate="%{x}: %{customdata:.4f}<extra></extra>",
            )
        )
    fig.update_layout(
        height=420,
        margin={"l": 60, "r": 10, "t": 60, "b": 110},
        yaxis={
            "type": "log",
            "title": {"text": "doppelganger rate", "standoff": 12},
            "dtick": 1,
            "exponentformat": "power",
            "automargin": True,
        },
        xaxis={"tickangle": -45, "automargin": True},
        legend={"orientation": "h", "y": 1.12, "x": 0},
    )
    return figure(fig)


def spectra(wave: np.ndarray, mean: np.ndarray, censored: np.ndarray, unit: str) -> dict[str, Any]:
    """Mean spectrum above, fraction of stars whose pixel is censored below."""
    fig = go.Figure()
    fig.add_trace(go.Scatter(x=wave, y=mean, mode="lines", line={"width": 1, "color": COLOURS["blue"]}, name="mean"))
    fig.add_trace(
        go.Scatter(
            x=wave,
            y=100 * censored,
            mode="lines",
            line={"width": 1, "color": COLOURS["vermilion"]},
            yaxis="y2",
            name="censored",
        )
    )
    fig.update_traces(hovertemplate="%{x:.1f}: %{y:.3f}<extra></extra>")
    fig.update_layout(
        height=430,
        margin={"l": 70, "r": 20, "t": 20, "b": 50},
        showlegend=False,
        xaxis={"title": {"text": unit}, "anchor": "y2", "exponentformat": "none"},
        yaxis={"title": {"text": "mean flux"}, "domain": [0.42, 1]},
        yaxis2={"title": {"text": "censored (%)"}, "domain": [0, 0.32], "range": [0, 102]},
    )
    if not np.any(censored > 0):
        place = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.16, "showarrow": False}
        fig.add_annotation(text="no pixel is censored", **place)
    return figure(fig)


def variance(explained: np.ndarray, noise: float) -> dict[str, Any]:
    """Variance of each component against the noise of a pixel."""
    k = np.arange(1, len(explained) + 1)
    fig = go.Figure(
        go.Scatter(
            x=k,
            y=explained,
            mode="lines+markers",
            marker={"size": 6, "color": COLOURS["blue"]},
            hovertemplate="component %{x}: %{y:.3g}<extra></extra>",
        )
    )
    yaxis = {"type": "log", "title": {"text": "explained variance (flux²)"}, "exponentformat": "power", "dtick": 1}
    if np.isfinite(noise) and noise > 0:
        fig.add_hline(y=noise, line={"dash": "dash", "color": COLOURS["vermilion"]}, annotation_text="noise of a pixel")
        shown = np.log10([*explained[explained > 0], noise])  # a line does not widen the range by itself
        yaxis["range"] = [float(shown.min()) - 0.2, float(shown.max()) + 0.2]
    fig.update_layout(
        height=360,
        margin={"l": 70, "r": 20, "t": 30, "b": 50},
        xaxis={"title": {"text": "component"}},
        yaxis=yaxis,
    )
    return figure(fig)


def scales(sigma: np.ndarray) -> dict[str, Any]:
    """Scatter inside clusters of each sphered feature: the lower, the more it tells clusters apart."""
    k = np.arange(1, len(sigma) + 1)
    fig = go.Figure(
        go.Bar(x=k, y=sigma, marker={"color": COLOURS["blue"]}, hovertemplate="feature %{x}: %{y:.3f}<extra></extra>")
    )
    # named where bars are low: features come in the order of what they tell
    line = {"dash": "dash", "color": COLOURS["vermilion"]}
    fig.add_hline(y=1.0, line=line, annotation_text="no information", annotation_position="top left")
    fig.update_layout(
        height=360,
        margin={"l": 70, "r": 20, "t": 30, "b": 50},
        xaxis={"title": {"text": "RSCA feature"}},
        yaxis={"title": {"text": "scatter in clusters / scatter in field"}},
    )
    return figure(fig)


def training(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Reconstruction error of training against held-out stars by epoch, its terms on demand; None without records."""
    records = [c for c in curves if c.get("phase", "main") == "main" and "epoch" in c]
    terms = [k for k in dict.fromkeys(k for c in records for k in c) if k.startswith("reconstruction")]
    lines: dict[str, list[tuple[float, float]]] = {"training": [], "held out": []}
    for c in records:
        values = [float(c[k]) for k in terms if isinstance(c.get(k), int | float)]
        if values:
            lines["training"].append((c["epoch"], sum(values) / len(values)))
        if isinstance(c.get("validation"), int | float):
            lines["held out"].append((c["epoch"], c["validation"]))
    if len(terms) > 1:
        for k in terms:
            found = [(c["epoch"], float(c[k])) for c in records if isinstance(c.get(k), int | float)]
            lines[f"training, {k.removeprefix('reconstruction_').replace('_', ' ')}"] = found
    fig = go.Figure()
    looks = {"training": {"width": 2.2}, "held out": {"width": 2.2, "dash": "dash"}}
    for name, points in lines.items():
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            shown = True if name in looks else "legendonly"
            look = looks.get(name, {"width": 1.2})
            fig.add_trace(go.Scatter(x=x, y=y, mode="lines", name=plain(name), line=look, visible=shown))
    if not fig.data:
        return None
    fig.update_layout(
        height=430,
        margin={"l": 76, "r": 10, "t": 20, "b": 100},
        xaxis={"title": {"text": "epoch"}},
        yaxis={"title": {"text": "chi-square of a pixel"}, "type": "log", "dtick": "D2"},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
        colorway=[COLOURS[k] for k in ("blue", "vermilion", "green", "purple", "orange", "sky")],
    )
    return figure(fig)
