"""The linear metrics chemscale knows: one class and one line each, in the order of tables and figures."""

from __future__ import annotations

from collections.abc import Callable

from chemscale.errors import InputError
from chemscale.rsca.baselines import Raw, Scaled
from chemscale.rsca.held_out import HeldOutRSCA
from chemscale.rsca.linear import LinearMetric
from chemscale.rsca.metric import RSCA
from chemscale.suggest import hint

METRICS: dict[str, type[LinearMetric]] = {
    m.name: m
    for m in (
        Raw,
        Scaled,
        RSCA,
        HeldOutRSCA,
    )
}

#: What an evaluation rates besides, in its order in tables.
DERIVED = {
    "rsca_top": "RSCA, top features",
    "rsca_without_cross_validation": "RSCA rated on clusters it has seen",
    "auto": "metric chosen by nested cross-validation",
}


def titles() -> dict[str, str]:
    """How tables and the report call each rate of an evaluation, in their order."""
    return {name: m.title for name, m in METRICS.items()} | DERIVED


def short_titles() -> dict[str, str]:
    """The same where room is short."""
    return {name: m.short_title for name, m in METRICS.items()} | {"rsca_top": "RSCA top", "auto": "auto"}


def make(metric: str | Callable[[], LinearMetric]) -> LinearMetric:
    """A fresh, unfitted metric: of a name, or what a callable (such as a class) makes.

    Raises
    ------
    InputError
        No metric has that name.
    """
    if not isinstance(metric, str):
        return metric()
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}", hint(metric, list(METRICS), "metrics"))
    return METRICS[metric]()
