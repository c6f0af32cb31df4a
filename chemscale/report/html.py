"""`build_report`: one HTML page that needs no network, from whatever a run holds.

Every text on the page comes through Jinja's escaping or, inside data, through JSON that cannot end its element;
catalogue text that Plotly shows is escaped as well, since Plotly reads a little HTML.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from chemscale._version import __version__
from chemscale.report import charts, explore, findings, products
from chemscale.results.verdict import verdicts
from chemscale.rsca.siblings import recommended
from chemscale.rsca.uncertainty import bootstrap
from chemscale.runtime.files import write_file
from chemscale.runtime.product import remove_partials
from chemscale.runtime.run import Run
from chemscale.studies import registry
from chemscale.suggest import known_ending

#: What a page's name may end in.
ENDINGS = (".html", ".htm")
#: Figures beyond so many bytes are embedded in 256 colours: the page must stay small with every study in it.
LARGE_IMAGE = 150_000

_MISSING = """<div class="missing">{{ what }} is not in this run yet. Add it with <code>{{ command }}</code>.</div>"""


def build_report(
    run_dir: str | os.PathLike[str] | Run,
    out: str | os.PathLike[str] | None = None,
    *,
    n_stars: int = 6000,
    n_spectra: int = 300,
) -> Path:
    """Write the report of a run.

    Parts whose products are absent are left out, or replaced by the command that makes them. Reads the per-star
    products once and the spectra of at most :data:`chemscale.report.products.MAX_CHUNKS` chunks.

    Parameters
    ----------
    run_dir : path-like or Run
        A run directory (one with a ``manifest.json``).
    out : path-like, optional
        Where to write; ``RUN/report.html`` by default.
    n_stars : int
        Field stars embedded for the interactive figures; cluster members come on top.
    n_spectra : int
        Observed spectra embedded.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    StoreError
        `run_dir` is not a run.
    InputError
        `out` does not end in ``.html``.
    """
    run = run_dir if isinstance(run_dir, Run) else Run.open(run_dir)
    target = known_ending(out, ENDINGS) if out is not None else run.path / "report.html"
    page = _Page(run, n_stars, n_spectra).render().encode()
    if not target.absolute().is_relative_to(run.path.absolute()):
        write_file(target, page)
        return target
    with run.locked():
        remove_partials(run.path)
        write_file(target, page)
        run.seal_file(target)
    return target


class _Page:
    """Gathers the parts of the page from one run."""

    def __init__(self, run: Run, n_stars: int, n_spectra: int):
        self.run = run
        self.evaluation = products.load_json(run, "evaluation.json")
        #: the rate of the metric that the run recommends: the one that stands out
        self.best = "auto" if recommended(run)["metric"] == "auto" else "rsca_top"
        self.model = explore.load_model(run)
        self.stars = explore.gather(run, self.model, n_stars, n_spectra)
        self.charts: dict[str, Any] = {}
        self.text: dict[str, Any] = {"rates_note": "", "spectra_note": "", "variance_note": ""}

    def render(self) -> str:
        """The whole page as text."""
        env = Environment(loader=PackageLoader("chemscale.report"), autoescape=True, undefined=StrictUndefined)
        rows, columns = self._rates()
        self._spectra()
        self._training()
        has_metric = self.model is not None
        shown = [self._study(s) for s in products.studies(self.run)]
        absent = [n for n in registry.names() if n not in {s["name"] for s in shown}]
        gallery = explore.anomalies(self.run)
        found = findings.sections(self.run)
        run_path = os.fspath(self.run.path)
        template = env.from_string(_MISSING)

        def missing(what: str, command: str) -> Markup:
            return Markup(template.render(what=what, command=command))  # noqa: S704 - rendered with escaping

        assets = {name: env.loader.get_source(env, name)[0] for name in ("report.css", "report.js")}  # type: ignore[union-attr]
        data = {
            "charts": self.charts,
            "explore": self.stars.payload if self.stars else None,
            "anomalies": gallery.payload if gallery else None,
        }
        return env.get_template("report.html").render(
            title=self._title(),
            lead=self._lead(),
            tiles=self._tiles(),
            nav=self._nav(has_metric, bool(shown) or (bool(absent) and has_metric), gallery is not None, found),
            has_metric=has_metric,
            training="training" in self.charts,
            charts=self.charts,
            cuts=self._cuts(),
            cluster_rows=rows,
            cluster_columns=columns,
            explore=self.stars,
            studies=shown,
            studies_missing=absent,
            anomalies=gallery,
            findings=found,
            stages=self._stages(),
            provenance=json.dumps(self._provenance(), indent=2),
            commands={
                "fit": f"chemscale rsca fit STORE --run {run_path}",
                "evaluate": f"chemscale rsca evaluate --run {run_path}",
            },
            missing=missing,
            run_path=run_path,
            version=__version__,
            now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            css=Markup(assets["report.css"]),  # noqa: S704 - our own files
            js=Markup(assets["report.js"]),  # noqa: S704
            plotly=Markup(_plotly()),  # noqa: S704
            data=Markup(charts.script_json(data)),  # noqa: S704 - escaped for its script element
            **self.text,
        )

    def _title(self) -> str:
        return f"{self.stars.survey_name} · {self.run.path.name}" if self.stars else self.run.path.name

    def _lead(self) -> str:
        created = str(self.run.manifest.get("created", "")).replace("T", " ")[:16]
        what = "Chemical likeness of stars: a metric learned from open clusters, applied to spectra."
        if self.model is None and self.stars is not None:
            what = "Chemical latents of stars: a variational autoencoder of their spectra."
        return f"{what} Run started {created} UTC on {self.run.manifest.get('store') or 'no store'}."

    def _nav(
        self, metric: bool, studies: bool, anomalies: bool, found: list[findings.Section]
    ) -> list[tuple[str, str]]:
        parts = [
            ("rates", "Rates", metric or self.stars is None),
            ("explore", "Explore", self.stars is not None),
            ("studies", "Studies", studies),
        ]
        parts += [("anomalies", "Anomalies", anomalies), *((s.id, s.title, True) for s in found)]
        parts += [("training", "Training", "training" in self.charts)]
        parts += [("spectra", "Spectra", True), ("run", "Run", True)]
        return [(id_, name) for id_, name, there in parts if there]

    def _tiles(self) -> list[dict[str, Any]]:
        ev, tiles = self.evaluation, []

        def tile(name: str, value: str, key: bool = False, error: str = "") -> None:
            tiles.append({"name": name, "value": value, "key": key, "error": error})

        if self.stars:
            tile("stars in the survey", f"{self.stars.n_survey:,}")
        for key, name in (("n_field", "field stars"), ("n_members", "cluster members"), ("n_clusters", "clusters")):
            if key in ev:
                tile(name, f"{ev[key]:,}")
        if self.model is not None:
            tile("components", str(self.model.n_components))
        for key in (self.best, *(k for k in ("raw", "rsca", "rsca_top", "auto") if k != self.best)):
            if isinstance(ev.get(key), int | float):
                error = self._errors().get(key)
                label = ("recommended: " if key == self.best else "rate, ") + charts.METHODS[key]
                if key == "rsca_top" and ev.get("n_features"):
                    label += f" ({ev['n_features']})"
                tile(label, _rate(ev[key]), key == self.best, f"± {_rate(error)}" if error else "")
        self._vae_tiles(tile)
        return tiles

    def _vae_tiles(self, tile: Callable[..., None]) -> None:
        """Cards of the autoencoder: what its latents are worth, and what it found."""
        quality = products.load_json(self.run, "vae_evaluation.json")
        for label, name in (("fe_h", "[Fe/H]"), ("alpha_fe", "[α/Fe]"), ("c_fe", "[C/Fe]")):
            r, rmse = quality.get(f"r_{label}"), quality.get(f"rmse_map_{label}", quality.get(f"rmse_{label}"))
            if isinstance(r, float) and r == r:
                off = f"RMSE {rmse:.3f} dex" if isinstance(rmse, float) and rmse == rmse else ""
                tile(f"r of {name} with its latent", f"{r:.3f}", True, off)
        if isinstance(quality.get("relative_l2"), float):
            tile("relative L2 of the reconstruction", f"{quality['relative_l2']:.4f}")
        found = products.load_json(self.run, "anomalies.json")
        if "flagged" in found:
            blank = int((found.get("causes") or {}).get("no data", 0))
            tile("anomalous stars", f"{max(found['flagged'] - blank, 0):,}", False, f"at {found['false_alarm']:.1%}")
        for name, count in (products.load_json(self.run, "flags.json").get("counts") or {}).items():
            tile(f"stars flagged as {findings.words(name)}", f"{count:,}")

    def _errors(self) -> dict[str, float]:
        """Standard errors over clusters, by method."""
        sizes, out = explore.cluster_sizes(self.evaluation), {}
        for method, by_cluster in explore.per_cluster(self.evaluation).items():
            names = [c for c in by_cluster if by_cluster[c] is not None]
            if len(names) > 1:
                values = np.array([[by_cluster[c], sizes[c]] for c in names], float)
                out[method] = bootstrap((values[:, 0], values[:, 1]))[0]
        return out

    def _cuts(self) -> str:
        cuts = self.evaluation.get("cuts") or []
        names = list(cuts) if not isinstance(cuts, str) else [cuts]
        return " and ".join(str(c).replace("_", " ") for c in names)

    def _rates(self) -> tuple[list[list[str]], list[str]]:
        ev = self.evaluation
        rates = {k: float(v) for k, v in explore.global_rates(ev).items() if v is not None}
        values = {k: v for k, v in rates.items() if v > 0}
        if not values:
            return [], []
        self.charts["rates"] = charts.rates(values, self._errors(), self.best)
        self.text["rates_note"] = (
            "Bars are standard errors from clusters drawn with replacement. The axes are logarithmic; a cluster "
            "without a single doppelganger sits at the lower edge."
        )
        if none := [charts.METHODS.get(k, k) for k, v in rates.items() if v == 0]:
            self.text["rates_note"] += f" Not a single doppelganger, so no point: {', '.join(none)}."
        table = explore.per_cluster(ev)
        if not table:
            return [], []
        names = sorted({c for by_cluster in table.values() for c in by_cluster}, key=_natural)
        sizes = explore.cluster_sizes(ev)
        nan = float("nan")
        columns = {m: [nan if t.get(c) is None else float(t[c]) for c in names] for m, t in table.items()}
        self.charts["clusters"] = charts.clusters(names, columns, [sizes.get(c, 0) for c in names], self.best)
        rows, shown = [], {m: _rates_alike(values) for m, values in columns.items()}
        for i, c in enumerate(names):
            cells = [shown[m][i] for m in columns]
            rows.append([c, str(sizes[c]) if c in sizes else "–", *cells])
        return rows, ["cluster", "members", *(charts.METHODS.get(m, m) for m in columns)]

    def _spectra(self) -> None:
        s = self.stars
        if s is not None and s.mean_flux is not None:
            self.charts["spectra"] = charts.spectra(s.wavelength, s.mean_flux, s.censored, s.wavelength_title)
            self.text["spectra_note"] = (
                f"From {s.n_spectra:,} spectra embedded in this page ({s.bin_factor} pixel(s) a point). Censored "
                "pixels are gaps between detectors, large errors, pixels the survey flags and interstellar windows."
            )
        if self.model is not None:
            self.charts["variance"] = charts.variance(self.model.explained_variance, self.model.noise)
            total = float(np.sum(self.model.explained_variance))
            k = self.model.n_components
            note = f"Variance of the field along each of the {k} components (sum {total:.3g})"
            if np.isfinite(self.model.noise) and self.model.noise > 0:
                note += ", against the variance that noise puts into one pixel"
            self.text["variance_note"] = f"{note}."
            if self.model.sigma_clust is not None:
                self.charts["scales"] = charts.scales(self.model.sigma_clust)

    def _training(self) -> None:
        """Loss curves of the VAE: a list of one record an epoch."""
        if self.run.has("vae/curves.json"):
            curves = [c for c in self.run.load_json("vae/curves.json") if isinstance(c, dict)]
            chart = charts.training(curves)
            if chart is not None:
                self.charts["training"] = chart

    def _study(self, summary: dict[str, Any]) -> dict[str, Any]:
        folder = summary["folder"]
        image, width, height = _image(folder / "figure.png")
        csv = folder / "data.csv"
        small = csv.exists() and csv.stat().st_size < 200_000
        return {
            "name": summary["name"],
            "title": summary["title"],
            "source": summary["source"],
            "caption": summary.get("caption", ""),
            "basis": summary.get("basis", ""),
            "numbers": [(findings.words(k), _short(v)) for k, v in summary.get("numbers", {}).items()],
            "image": image,
            "width": width,
            "height": height,
            "wide": width > 1.6 * height and width > 1500,
            "table": findings.study_table(csv),
            "csv": _uri("text/csv", csv.read_bytes()) if small else "",
            "elsewhere": "" if small or not csv.exists() else os.fspath(csv),
        }

    def _stages(self) -> list[dict[str, Any]]:
        rows, told = [], verdicts(self.run)
        for name, entry in self.run.manifest.get("stages", {}).items():
            given = (entry.get("facts") or {}).items()
            facts = {k: v for k, v in given if not isinstance(v, dict | list) and k != "verdict" and v != ""}
            text = ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in facts.items())
            rows.append(
                {
                    "name": name,
                    "status": entry.get("status", ""),
                    "failed": entry.get("status") == "failed",
                    "time": f"{entry['wall_s']:.1f} s" if entry.get("wall_s") is not None else "–",
                    "memory": f"{entry['peak_memory_mb'] / 1024:.2f} GiB" if entry.get("peak_memory_mb") else "–",
                    "facts": entry.get("error") or text,
                    "verdict": told.get(name, ""),
                }
            )
        return rows

    def _provenance(self) -> dict[str, Any]:
        manifest = self.run.manifest
        stages = {k: v.get("settings", {}) for k, v in manifest.get("stages", {}).items()}
        # not the checksums of files: the page would tell its own, and be another one each time it is made
        keep = {k: v for k, v in manifest.items() if k not in {"stages", "files", "checksum"}}
        return {**keep, "settings by stage": stages, "survey": self.stars.provenance if self.stars else {}}


def _image(file: Path) -> tuple[str, int, int]:
    """A PNG as a data address, with its size; in 256 colours where that spares much of a large one."""
    if not file.exists():
        return "", 0, 0
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        if len(content) > LARGE_IMAGE:
            buffer = io.BytesIO()
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
            content = min(content, buffer.getvalue(), key=len)
    return _uri("image/png", content), width, height


def _natural(name: str) -> list[Any]:
    """Sort key that puts NGC 188 before NGC 1245."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _rate(value: float) -> str:
    """Four decimals, or two digits where those would all be zero."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.4f}" if value >= 0.0005 or value == 0 else f"{value:.1e}"


def _rates_alike(values: Sequence[float]) -> list[str]:
    """Rates of one column with as many decimals each: four, or up to six where the smallest would be all zeros."""
    some = [v for v in values if np.isfinite(v) and v > 0]
    decimals = min(6, max(4, int(np.ceil(-np.log10(min(some)))))) if some else 4
    return [f"{v:.{decimals}f}" if np.isfinite(v) else "–" for v in values]


def _short(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
