"""How a basis is fitted: the recommended recipe, the paper's, and changes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from chemscale.errors import InputError
from chemscale.runtime.run import Run

#: Residual, in units of a pixel's error, beyond which the recommended recipe leaves it out.
OUTLIER_SIGMAS = 6.0


@dataclass(frozen=True)
class Recipe:
    """How a basis is fitted.

    Parameters
    ----------
    noise : {"shared", "per-pixel"}
    outlier_sigmas : float, optional
        Residual, in units of a pixel's error, beyond which it is left out. None: no pixel is.
    tol : float
        Principal angle (radian) of the determined components to the exact solution at which the fit stops.
    loglike_tol : float, optional
        Relative change of the log-likelihood at which it stops, too.
    max_passes : int
        Largest number of passes.
    start : {"subsample", "incremental"}
    """

    noise: str = "per-pixel"
    outlier_sigmas: float | None = OUTLIER_SIGMAS
    tol: float = 0.01
    loglike_tol: float | None = None
    max_passes: int = 100
    start: str = "subsample"

    def settings(self) -> dict[str, Any]:
        """Arguments of :func:`~chemscale.embedding.fit.fit_survey`."""
        out = asdict(self)
        return {"max_iter": out.pop("max_passes"), **out}


#: Recipes by name. The paper's own: shared noise, every pixel counts, stopped by the change of the objective.
RECIPES = {"recommended": Recipe(), "paper": Recipe("shared", None, loglike_tol=1e-5, max_passes=30)}


def chosen_recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by name, with those changes that are not None; ``outlier_sigmas=0`` means that no pixel is left out.

    Raises
    ------
    InputError
        There is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}", f"choose one of: {', '.join(RECIPES)}")
    made = replace(RECIPES[name], **{k: v for k, v in changes.items() if v is not None})
    return made if made.outlier_sigmas else replace(made, outlier_sigmas=None)


def recipe_of(run: Run) -> Recipe:
    """The recipe that the basis of a run was fitted with; the paper's for runs of releases that knew no other."""
    settings = run.manifest.get("stages", {}).get("ppca", {}).get("settings", {})
    known = {f.name for f in fields(Recipe)}
    if not known <= set(settings):
        return replace(RECIPES["paper"], noise=settings.get("noise", "shared"))
    return Recipe(**{name: settings[name] for name in known})
