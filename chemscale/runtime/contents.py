"""What a run directory may hold: the products, what each is made from, and the command that makes it."""

from __future__ import annotations

#: Products of a run, by file name.
PRODUCTS = {
    "ppca.zarr": "the basis: chemscale.MaskedPPCA",
    "embedding.zarr": "coordinates of every star: chemscale.open_embedding",
    "rsca.zarr": "the paper's metric: chemscale.RSCA",
    "ppca_auto.zarr": "the basis of the better metric",
    "embedding_auto.zarr": "coordinates of every star in it",
    "auto.zarr": "the metric chosen by nested cross-validation",
    "auto.json": "what was tried and chosen",
    "evaluation.json": "doppelganger rates",
    "elements.zarr": "likeness in single elements",
    "siblings.zarr": "the nearest stars of every star",
    "vae": "the trained autoencoder",
    "latents.zarr": "latents, errors and scores of every star",
    "anomalies.json": "spectra the autoencoder cannot explain",
    "flags.json": "stars rich or poor in an element",
    "vae_evaluation.json": "latents against labels",
    "studies": "figures and tables",
    "report.html": "the page",
}
FIT, FIT_AUTO = "chemscale rsca fit STORE --run RUN", "chemscale rsca fit STORE --run RUN --metric auto"
#: Product -> what it is made from, and the command that makes it. A product is refused when these are no longer
#: what it was made from.
MADE_FROM: dict[str, tuple[tuple[str, ...], str]] = {
    "ppca.zarr": ((), FIT),
    "embedding.zarr": (("ppca.zarr",), FIT),
    "rsca.zarr": (("embedding.zarr",), FIT),
    "ppca_auto.zarr": ((), FIT_AUTO),
    "embedding_auto.zarr": (("ppca_auto.zarr",), FIT_AUTO),
    "auto.zarr": (("embedding_auto.zarr",), FIT_AUTO),
    "auto.json": (("auto.zarr",), FIT_AUTO),
    "evaluation.json": (("embedding.zarr", "rsca.zarr", "auto.zarr"), "chemscale rsca evaluate --run RUN"),
    "elements.zarr": (("embedding.zarr",), "chemscale rsca elements --run RUN"),
    "elements.json": (("elements.zarr",), "chemscale rsca elements --run RUN"),
    "siblings.zarr": (("rsca.zarr", "auto.zarr"), "chemscale rsca neighbours --run RUN"),
    "latents.zarr": (("vae/model.json",), "chemscale vae infer STORE --run RUN --overwrite"),
    "anomalies.zarr": (("latents.zarr",), "chemscale anomalies --run RUN"),
    "anomalies.json": (("latents.zarr",), "chemscale anomalies --run RUN"),
    "flags.zarr": (("latents.zarr",), "chemscale flags --run RUN"),
    "flags.json": (("latents.zarr",), "chemscale flags --run RUN"),
    "vae_evaluation.json": (("latents.zarr",), "chemscale vae evaluate STORE --run RUN"),
}
