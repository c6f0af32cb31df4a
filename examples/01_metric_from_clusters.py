# %% [markdown]
# # A metric learned from clusters
# RSCA on plain arrays: two of six dimensions know about birth, one is loud and says nothing.

# %%
import numpy as np

import chemscale

rng = np.random.default_rng(0)
loud = np.array([1, 1, 1, 1, 1, 8.0])
field = rng.normal(size=(4000, 6)) * loud
clusters = np.repeat([f"C{i}" for i in range(14)], 7)
members = np.repeat(rng.normal(size=(14, 6)), 7, axis=0)
members += rng.normal(size=members.shape) * [0.1, 0.2, 1, 1, 1, 1]
members *= loud

# %% [markdown]
# Distances as they are listen to the loud dimension; RSCA finds the two that matter.

# %%
rsca = chemscale.RSCA().fit(field, members, clusters)
print("scatter in clusters, field = 1:", rsca.sigma_clust_.round(2))

for method in ("raw", "scaled", "rsca"):
    rates = chemscale.doppelganger_rates(field, members, clusters, method=method)
    print(f"{method:7s} {rates.overall:.4f}")

# %% [markdown]
# Rated on the clusters it was fitted to, any metric looks better than it is.

# %%
honest = chemscale.doppelganger_rates(field, members, clusters).overall
flattering = chemscale.doppelganger_rates(field, members, clusters, leave_one_out=False).overall
print(f"leave-one-cluster-out {honest:.4f}, seen before {flattering:.4f}")

# %% [markdown]
# How much more often are siblings than strangers this far apart?

# %%
z = rsca.transform(members, n_features=2)
pair = np.linalg.norm(z[0] - z[1])
print("ln of the probability ratio:", rsca.probability_ratio(pair, n_features=2, log=True).round(2))
