"""The shape of a model as a type: its dependency table, prior, widths; stored beside the weights.

How one is trained is :mod:`~chemscale.vae.train_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from chemscale.errors import InputError

_Config = TypeVar("_Config")


def read_settings(
    cls: type[_Config], raw: Mapping[str, Any], what: str, renamed: Mapping[str, str] | None = None
) -> _Config:
    """A configuration from JSON or keywords: types are checked, old names (old -> new) read, unknown keys errors."""
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    values = {k if k in known else (renamed or {}).get(k, k): v for k, v in raw.items()}
    if unknown := set(values) - known:
        raise InputError(f"unknown {what} settings {sorted(unknown)}", f"known: {', '.join(sorted(known))}")
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as err:
        first = err.errors()[0]
        name = ".".join(str(x) for x in first["loc"])
        raise InputError(
            f"{what} setting {name} = {first['input']!r}: {first['msg']}", "see its documentation"
        ) from err


@dataclass(frozen=True)
class Group:
    """One row of the dependency table: decoder `name` teaches `latent` and reads `given`, stopped.

    Latents of `given_late` it reads only once the axes have settled: two decoders that read each other's latent from
    the start have no reason to prefer one pair of axes to another. Until then latents of `given_cool` are read of stars
    below the model's `crossover` in Teff only, those of `given_warm` above it only: which of two elements rules a
    window may depend on temperature.
    """

    name: str
    latent: str
    given: tuple[str, ...] = ()
    given_late: tuple[str, ...] = ()
    given_cool: tuple[str, ...] = ()
    given_warm: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        """Every latent the decoder reads, in the order of its inputs."""
        return (*self.given, *self.given_late, *self.given_cool, *self.given_warm)


#: Below some 4,600 K carbon rules the iron windows and the carbon windows both, above it metals do: until the axes
#: have settled, the iron decoder reads z_C of cool stars and the carbon decoder z_M of warm ones. The alpha windows
#: answer to metals and carbon more than to alpha: their decoder reads both.
DEFAULT_GROUPS = (
    Group("iron", "metal", given_cool=("carbon",)),
    Group("carbon", "carbon", given_warm=("metal",)),
    Group("alpha", "alpha", ("metal", "carbon")),
)
#: Section 2.3 of the paper: the metal decoder reads z_C.
PAPER_GROUPS = (
    Group("iron", "metal", ("carbon",)),
    Group("carbon", "carbon", ("metal",)),
    Group("alpha", "alpha", ("metal", "carbon")),
)
#: Correlations of the prior (paper, appendix B).
PAPER_CORRELATIONS = {"metal-alpha": -0.3, "metal-carbon": -0.17}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape of a model; stored beside its weights.

    Attributes
    ----------
    encoder : {'ppca', 'conv'}
    n_components : int
        Coordinates of the PPCA front end.
    hidden, decoder : tuple of int
        Widths of the encoder's perceptron and of every decoder.
    groups : tuple of Group
        The dependency table; latents are numbered in its order.
    correlations : mapping of "a-b" to float
        Off-diagonal entries of the prior's correlation matrix.
    depth : float
        Each decoder starts with its own latent making every pixel of its group this much deeper a
        unit, for all stars alike (and learns from there): without it a latent may settle on
        opposite signs for hot and cool stars. 0 = no such term (the paper's decoders).
    n_auxiliary : int
        Dimensions of w.
    labels : tuple of str
        Store variables the linear head predicts from w and z must be independent of.
    selective : bool
        Stop the gradients of read latents (False: ablation of the paper's appendix C).
    condition_on : {'mean', 'sample'}
        What a decoder sees of the latents it only reads.
    auxiliary_gradient : bool
        Whether reconstruction teaches w (the paper's choice) or only the linear head does.
    rest : bool
        Add a decoder for the pixels no group claims; it teaches no latent.
    adversary_bins : int
        Bins of each label of the adversary's classes.
    crossover : float
        Teff (K) below which latents of `given_cool` are read and above which those of `given_warm`, until the axes
        have settled.
    """

    encoder: str = "ppca"
    n_components: int = 32
    hidden: tuple[int, ...] = (256, 256, 64)
    decoder: tuple[int, ...] = (64, 128)
    groups: tuple[Group, ...] = DEFAULT_GROUPS
    correlations: Mapping[str, float] = field(default_factory=lambda: dict(PAPER_CORRELATIONS))
    depth: float = 0.03
    n_auxiliary: int = 2
    labels: tuple[str, ...] = ("teff", "logg")
    selective: bool = True
    condition_on: str = "mean"
    auxiliary_gradient: bool = False
    rest: bool = True
    adversary_bins: int = 8
    crossover: float = 4600.0

    def __post_init__(self) -> None:
        if self.encoder not in ("ppca", "conv"):
            raise InputError(f"unknown encoder {self.encoder!r}", "use 'ppca' or 'conv'")
        if self.condition_on not in ("mean", "sample"):
            raise InputError(f"condition_on = {self.condition_on!r}", "use 'mean' or 'sample'")
        names = self.latents
        if len(set(names)) != len(names) or len({g.name for g in self.groups}) != len(self.groups):
            raise InputError("the dependency table repeats a group or a latent", "one row a group, one latent a row")
        for group in self.groups:
            read = group.read
            bad = [g for g in read if g not in names or g == group.latent]
            if bad or len(set(read)) != len(read):
                raise InputError(f"group {group.name!r} reads {bad}", f"latents of this model: {', '.join(names)}")
        if any(g.given_cool or g.given_warm for g in self.groups) and "teff" not in self.labels:
            raise InputError("given_cool and given_warm need Teff", "add teff to labels")
        self.prior()

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the chemical latents, in the order of z."""
        return tuple(g.latent for g in self.groups)

    @property
    def n_latents(self) -> int:
        """Dimensions of z."""
        return len(self.groups)

    def prior(self) -> np.ndarray:
        """Covariance of the prior of z: unit variances, the given correlations; (d, d) float32."""
        names = self.latents
        matrix = np.eye(len(names))
        for pair, value in self.correlations.items():
            a, _, b = pair.partition("-")
            if a not in names or b not in names or a == b:
                raise InputError(f"prior correlation {pair!r}", f"write 'a-b' with a, b of {', '.join(names)}")
            i, j = names.index(a), names.index(b)
            matrix[i, j] = matrix[j, i] = value
        if np.linalg.eigvalsh(matrix)[0] <= 1e-6:
            raise InputError("the prior's correlation matrix is not positive definite", "lower the correlations")
        return matrix.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Configuration from JSON; unknown keys are errors.

        >>> ModelConfig.from_dict({"hidden": [64, 32], "depth": 0.0}).latents
        ('metal', 'carbon', 'alpha')
        """
        return read_settings(cls, raw, "model")
