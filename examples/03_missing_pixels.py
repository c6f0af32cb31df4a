# %% [markdown]
# # Spectra with holes
# A fifth of all pixels is missing, and not at random. Filling holes with the mean pulls the basis; a masked PPCA does
# not see the holes at all.

# %%
import numpy as np

from chemscale import MaskedPPCA

rng = np.random.default_rng(4)
truth = np.linalg.qr(rng.normal(size=(200, 3)))[0].T
flux = (rng.normal(size=(1500, 3)) * [3, 2, 1]) @ truth + rng.normal(0, 0.05, (1500, 200))
mask = rng.random(flux.shape) < np.where(np.arange(200) < 60, 0.5, 0.05)  # True = missing


def angle(basis):
    """Largest angle to the true plane, degrees."""
    return np.degrees(np.arccos(np.clip(np.linalg.svd(truth @ np.linalg.qr(basis.T)[0])[1].min(), -1, 1)))


# %%
filled = np.where(mask, np.where(mask, 0, flux).sum(0) / (~mask).sum(0), flux)
plain = np.linalg.svd(filled - filled.mean(0), full_matrices=False)[2][:3]
ppca = MaskedPPCA(3).fit(flux, mask)
print(f"filled with the mean: {angle(plain):.2f} deg;  masked: {angle(ppca.components_):.2f} deg")

# %% [markdown]
# Coordinates come with their variance: the more pixels are missing, the less is known.

# %%
z, variance = ppca.transform_with_variance(flux, mask)
print("hidden pixels rebuilt to", np.std((ppca.mean_ + z @ ppca.components_ - flux)[mask]).round(3), "(noise 0.05)")
