# %% [markdown]
# # A study of your own
# A study is a function from a run to a figure and its table. Here: does a cluster's rate depend on its size?

# %%
import tempfile
from pathlib import Path

import numpy as np

import chemscale
from chemscale.rsca.pipeline import fit_run
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.survey.sources.simulated import SimulatedSource

folder = Path(tempfile.mkdtemp())
chemscale.ingest(SimulatedSource(stars=600, clusters=8, seed=5, grid="lowres"), folder / "survey.zarr", progress=False)
run = fit_run(str(folder / "survey.zarr"), folder / "run", components=6)


# %%
def compute(context: StudyContext) -> StudyResult:
    rates = context.sample.evaluation.rates("rsca", n_features=3)
    size = np.array([rates.n_members[c] for c in rates.per_cluster])
    rate = np.array(list(rates.per_cluster.values()))
    fig, ax = style.figure()
    ax.plot(size, rate, ls="", marker="o", color=style.CYCLE[0])
    ax.set_xlabel("members")
    ax.set_ylabel("doppelganger rate")
    table = {"cluster": list(rates.per_cluster), "members": size, "rate": rate}
    meaning = {"cluster": "name", "members": "stars", "rate": "leave-one-cluster-out"}
    return StudyResult(fig, table, meaning, {"clusters": len(size)}, "Rate of each cluster against its size.")


STUDY = Study("size", "Rate against cluster size", "an example", compute)

# %%
with style.context():
    result = STUDY.compute(StudyContext(run))
    print([f.name for f in style.save(result.figure, folder)])
style.write_csv(folder / "size.csv", result.table)
print((folder / "size.csv").read_text()[:200])
