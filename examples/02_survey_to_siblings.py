# %% [markdown]
# # From a survey to the siblings of a star

# %%
import tempfile
from pathlib import Path

import numpy as np

import chemscale
from chemscale.rsca.evaluate import evaluate_run
from chemscale.rsca.pipeline import fit_run
from chemscale.survey.sources.simulated import SimulatedSource

folder = Path(tempfile.mkdtemp())
source = SimulatedSource(stars=800, clusters=8, seed=2, grid="lowres")
chemscale.ingest(source, folder / "survey.zarr", progress=False)
survey = chemscale.open_survey(folder / "survey.zarr")
print(dict(survey.sizes))

# %% [markdown]
# Nothing has been read but labels. Fit a basis of eight components, embed every star, learn the metric.

# %%
run = fit_run(str(folder / "survey.zarr"), folder / "run", components=8)
result = evaluate_run(run.path)
for method in ("raw", "scaled", "rsca", "rsca_top"):
    print(f"{method:9s} {result[method]:.4f}")

# %% [markdown]
# The stars most alike a cluster member, and how many of them are members of its cluster.

# %%
cluster = survey["cluster"].values.astype(str)
names, sizes = np.unique(cluster[cluster != ""], return_counts=True)
largest = names[np.argmax(sizes)]
star = str(survey["star_id"].values[cluster == largest][0])
nearest = chemscale.siblings(star, run.path, n=10)
print(star, "of", largest)
print(np.isin(nearest["star_id"].values, survey["star_id"].values[cluster == largest]).sum(), "of 10 are siblings")
