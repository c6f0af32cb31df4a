"""The figures that explain the algorithms: computed, not drawn. ``python docs/figures.py [FOLDER]`` makes them again.

Each is ``NAME.png`` and ``NAME.pdf`` in the house style with its numbers beside it, ``NAME.csv``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.spatial.distance import pdist

from chemscale import RSCA, MaskedPPCA
from chemscale.studies import style

ASSETS = Path(__file__).resolve().parent / "assets"


def toy(seed: int = 3):
    """Field and eight clusters in two coordinates that mix one axis of birth and one of something else."""
    rng = np.random.default_rng(seed)
    mix = np.array([[2.2, 0.9], [0.7, 1.4]])
    field = rng.normal(size=(1500, 2)) @ mix
    names = np.repeat([f"C{i}" for i in range(8)], 7)
    members = np.repeat(rng.normal(size=(8, 2)) * [1, 0.4], 7, axis=0) + rng.normal(size=(56, 2)) * [0.12, 0.9]
    turn = np.array([[np.cos(0.9), -np.sin(0.9)], [np.sin(0.9), np.cos(0.9)]])
    return field, members @ turn @ mix, names


def rsca(folder: Path) -> None:
    """The four steps: coordinates, sphered, reparametrised, scaled."""
    field, members, names = toy()
    metric = RSCA().fit(field, members, names)

    def steps(z):
        sphered = (z - metric.mean_) @ metric.sphering_
        turned = sphered @ metric.rotation_
        return z - metric.mean_, sphered, turned, turned * metric.scale_

    titles = ("1. coordinates", "2. sphered by the field", "3. axes of the clusters", "4. scaled")
    fig, axes = style.figure("page", 0.27, ncols=4)
    table: dict[str, list] = {"step": [], "star": [], "group": [], "x": [], "y": []}
    for ax, title, f, m in zip(axes, titles, steps(field), steps(members), strict=True):
        ax.plot(*f[:500].T, ls="", marker=".", ms=1.2, color=style.FIELD)
        for i, name in enumerate(np.unique(names)):
            part = m[names == name]
            ax.plot(*part.T, ls="-", lw=0.4, marker=style.MARKERS[i % 7], ms=2.6, color=style.CYCLE[i % 7])
        limit = 1.15 * np.quantile(np.abs(f), 0.998)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), title=title, aspect="equal")
        for group, z in (("field", f[:500]), ("member", m)):
            labels = ["field"] * len(z) if group == "field" else names
            for k, (label, (x, y)) in enumerate(zip(labels, z, strict=True)):
                for column, value in zip(table, (title, k, label, x, y), strict=True):
                    table[column].append(value)
    _save(fig, folder, "rsca_steps", table)


def ppca(folder: Path) -> None:
    """How far the basis is off when a share of the pixels is missing, for filled and for masked data."""
    table: dict[str, list] = {"missing": [], "filled_deg": [], "masked_deg": [], "filled_sd": [], "masked_sd": []}
    for share in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5):
        angles = np.array([_angles(share, seed) for seed in range(4)])
        table["missing"].append(share)
        for k, name in enumerate(("filled", "masked")):
            table[f"{name}_deg"].append(angles[:, k].mean())
            table[f"{name}_sd"].append(angles[:, k].std(ddof=1))
    fig, ax = style.figure()
    for k, (name, title) in enumerate((("filled", "holes filled with the mean"), ("masked", "masked PPCA"))):
        x, y, e = 100 * np.array(table["missing"]), table[f"{name}_deg"], table[f"{name}_sd"]
        ax.errorbar(x, y, e, marker=style.MARKERS[k], ls=style.DASHES[k], color=style.CYCLE[k], label=title, capsize=2)
    ax.set(xlabel="missing pixels (%)", ylabel="largest angle to the truth (deg)", yscale="log")
    ax.legend()
    _save(fig, folder, "ppca_missing", table)


def _angles(share: float, seed: int) -> list[float]:
    rng = np.random.default_rng([seed, int(100 * share)])
    truth = np.linalg.qr(rng.normal(size=(120, 3)))[0].T
    flux = 1 + (rng.normal(size=(800, 3)) * [3, 2, 1]) @ truth + rng.normal(0, 0.05, (800, 120))
    # more holes at one end, as at the edge of a detector
    mask = rng.random(flux.shape) < share * np.where(np.arange(120) < 40, 1.8, 0.6)
    mean = np.where(mask, 0, flux).sum(0) / np.maximum((~mask).sum(0), 1)
    filled = np.where(mask, mean, flux)
    plain = np.linalg.svd(filled - filled.mean(0), full_matrices=False)[2][:3]
    masked = MaskedPPCA(3).fit(flux, mask).components_
    return [float(np.degrees(np.arcsin(np.linalg.norm(b - b @ truth.T @ truth, 2)))) for b in (plain, masked)]


def rates(folder: Path) -> None:
    """Distances of siblings and of strangers, the threshold, and the doppelganger rate between them."""
    field, members, names = toy()
    metric = RSCA().fit(field, members, names)
    f, m = metric.transform(field), metric.transform(members)
    siblings = np.concatenate([pdist(m[names == c]) for c in np.unique(names)])
    strangers = np.linalg.norm(m[:, None] - f[None], axis=2).ravel()
    threshold = float(np.median(siblings))
    rate = float(np.mean(strangers <= threshold))
    edges = np.linspace(0, np.quantile(strangers, 0.99), 60)
    table = {"distance": 0.5 * (edges[1:] + edges[:-1])}
    fig, ax = style.figure()
    for k, (name, values) in enumerate((("siblings", siblings), ("strangers", strangers))):
        table[name] = np.histogram(values, edges, density=True)[0]
        ax.stairs(table[name], edges, fill=True, alpha=0.35, color=style.CYCLE[k])
        ax.stairs(table[name], edges, color=style.CYCLE[k], label=name, ls=style.DASHES[k])
    ax.axvline(threshold, color="black", lw=0.8)
    note = f"median of siblings\n{rate:.1%} of strangers\nare closer"
    place = {"xycoords": ("data", "axes fraction"), "xytext": (4, 0), "textcoords": "offset points"}
    ax.annotate(note, (threshold, 0.62), fontsize=7, **place)
    ax.set(xlabel="distance after RSCA", ylabel="density of pairs")
    ax.legend()
    _save(fig, folder, "rates_distances", table)


def vae(folder: Path) -> None:
    """Which part of the autoencoder sees what."""
    boxes = {
        "spectrum": (0.0, 0.5),
        "encoder": (0.19, 0.5),
        "z: [Fe/H]": (0.40, 0.86),
        "z: carbon": (0.40, 0.62),
        "z: alpha": (0.40, 0.38),
        "w: the rest": (0.40, 0.14),
        "Fe decoder": (0.64, 0.86),
        "C decoder": (0.64, 0.62),
        "alpha decoder": (0.64, 0.38),
        "rest decoder": (0.64, 0.14),
        "rebuilt spectrum": (0.88, 0.5),
    }
    links = [("spectrum", "encoder")]
    for z, decoder in zip(list(boxes)[2:6], list(boxes)[6:10], strict=True):
        links += [("encoder", z), (z, decoder), (decoder, "rebuilt spectrum")]
    links += [("w: the rest", d) for d in list(boxes)[6:9]]
    fig, ax = style.figure("page", 0.3)
    ax.set_axis_off()
    ax.set(xlim=(-0.08, 1.0), ylim=(-0.02, 1.02))
    for a, b in links:
        dashed = a.startswith("w") and b != "rest decoder"
        (x0, y0), (x1, y1) = boxes[a], boxes[b]
        style_of = {"arrowstyle": "->", "color": style.FIELD, "lw": 0.7, "ls": "--" if dashed else "-"}
        ax.annotate("", (x1 - 0.065, y1), (x0 + 0.065, y0), arrowprops=style_of)
    for name, (x, y) in boxes.items():
        colour = style.CYCLE[1] if name.startswith("z") else style.CYCLE[0] if "decoder" in name else "black"
        look = {"boxstyle": "round", "facecolor": "white", "edgecolor": colour, "lw": 0.9}
        ax.text(x, y, name, ha="center", va="center", bbox=look, fontsize=7)
    _save(fig, folder, "vae_parts", {"from": [a for a, _ in links], "to": [b for _, b in links]})


def _save(fig, folder: Path, name: str, table) -> None:
    style.save(fig, folder, name)
    style.write_csv(folder / f"{name}.csv", table)


def main(folder: Path = ASSETS) -> None:
    """Make every figure."""
    folder.mkdir(parents=True, exist_ok=True)
    with style.context():
        for make in (rsca, ppca, rates, vae):
            make(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS)
