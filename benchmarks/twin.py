"""Does a small, regularised twin network find siblings better than a linear metric? Leave-one-cluster-out.

Both see the same coordinates of a run of ``chemscale rsca fit --metric auto``: sphered, once plain and once at one
temperature and gravity. The linear metric is one choice of `auto` (half shrunk to the noise, eight features). The
network is that metric plus a multi-layer perceptron that starts at zero; weight decay pulls it back there. It is
trained to tell a member's sibling from 127 field stars by distance, without the cluster it is rated on:

    python benchmarks/twin.py --runs DIR/r101 DIR/r102 --out benchmarks/results/twin.json

Nothing is nested: every strength of the regularisation is listed, so the best one is flattered.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from chemscale.rsca.auto_run import auto_representations, run_continuum
from chemscale.rsca.metric import sphering
from chemscale.rsca.pairs import count_close, median_pair_distance
from chemscale.rsca.representation import Representation
from chemscale.rsca.stars import Stars
from chemscale.runtime.run import Run

KEPT, RIVALS = 8, 127


class Twin(torch.nn.Module):
    """A linear map plus a perceptron that starts at zero; ``hidden = 0`` leaves the map alone."""

    def __init__(self, linear: np.ndarray, hidden: int):
        super().__init__()
        self.start = torch.tensor(linear, dtype=torch.float32)
        self.linear = torch.nn.Parameter(torch.zeros_like(self.start))
        self.rest = None
        if hidden:
            self.rest = torch.nn.Sequential(
                torch.nn.Linear(len(linear), hidden),
                torch.nn.SiLU(),
                torch.nn.Linear(hidden, hidden),
                torch.nn.SiLU(),
                torch.nn.Linear(hidden, linear.shape[1], bias=False),
            )
            torch.nn.init.zeros_(self.rest[-1].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (n, d)."""
        y = x @ (self.start + self.linear)
        return y if self.rest is None else y + self.rest(x)


def train(
    field: torch.Tensor, members: torch.Tensor, clusters: np.ndarray, linear: np.ndarray, *, hidden: int, decay: float
) -> Twin:
    """300 steps of 64 sibling pairs, each against field stars."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = Twin(linear, hidden)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=decay)
    pairs = np.array([(i, j) for i in range(len(clusters)) for j in np.flatnonzero(clusters == clusters[i]) if i != j])
    weight = 1 / np.array([np.sum(clusters == clusters[i]) - 1 for i, _ in pairs])  # a cluster counts as its members
    for _ in range(300):
        chosen = pairs[rng.choice(len(pairs), 64, p=weight / weight.sum())]
        rivals = field[rng.integers(0, len(field), RIVALS)]
        a, b, c = model(members[chosen[:, 0]]), model(members[chosen[:, 1]]), model(rivals)
        near = ((a - b) ** 2).sum(1, keepdim=True)
        far = (a**2).sum(1, keepdim=True) + (c**2).sum(1) - 2 * a @ c.T
        loss = torch.nn.functional.cross_entropy(-torch.cat([near, far], 1) / 4, torch.zeros(64, dtype=torch.long))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def rates(form: Representation, hidden: int | None, decay: float) -> float:
    """Leave-one-cluster-out rate; ``hidden=None`` is the linear metric."""
    e = form.evaluation
    spheres = sphering(e.moments)
    back = np.linalg.inv(spheres)
    x = torch.tensor(form.centred @ spheres, dtype=torch.float32)
    field = torch.tensor((form.field_coords() - e.moments.mean) @ spheres, dtype=torch.float32)
    total, weight = 0.0, 0
    for j, group in enumerate(form.groups):
        matrix = form.full_metric(len(spheres), 0.5, "noise", form.continuum is not None, (j,))[:, :KEPT]
        rows, allowed = form.rows(j)
        if hidden is None:
            far, own = rows @ matrix, form.centred[group] @ matrix
        else:
            rest = np.setdiff1d(np.arange(len(x)), group)
            names = form.clusters[rest]
            model = train(field, x[rest], names, back @ matrix, hidden=hidden, decay=decay)
            with torch.no_grad():
                far = model(torch.tensor(rows @ spheres, dtype=torch.float32)).double().numpy()
                own = model(x[group]).double().numpy()
        close, n = count_close(far, own, median_pair_distance(own), allowed)
        if n:
            total, weight = total + close / n * len(group), weight + len(group)
    return total / weight


def main() -> None:
    """Rate the runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--decay", nargs="+", type=float, default=[0.01, 1.0, 30.0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "twin.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = {}
    for path in args.runs:
        run = Run.open(path)
        forms, _, _ = auto_representations(Stars.read(run, "embedding_auto.zarr"), run_continuum(run))
        record: dict[str, float] = {}
        for name in ("plain", "transported"):
            start = time.perf_counter()
            record[f"{name}, linear"] = rates(forms[name], None, 0)
            for decay in args.decay:
                for hidden in (0, 32):
                    kind = "network" if hidden else "linear, same training"
                    record[f"{name}, {kind}, decay {decay:g}"] = rates(forms[name], hidden, decay)
            print(path, name, f"{time.perf_counter() - start:.0f} s", record, flush=True)
        known[Path(path).name] = record
        args.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
