"""The block kernels of masked PPCA as tensor code, for a GPU; :mod:`.ppca_kernels` and :mod:`.ppca_kernels_weighted`.

The sums are the same, under the same names and for both noise models, outliers included: only who multiplies differs.
Pixels are float32 or float64 as on CPUs; the small systems, and everything summed over stars, are float64. Where the
CPU goes through the few missing pixels of a star, a card makes the dense product with the K(K+1)/2 outer products of
the basis: two large products a block are most of a pass.

Blocks are NumPy arrays, which are copied to the device on every pass, or tensors that were left there by
:func:`upload`, which are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from chemscale.runtime.cluster import current_client
from chemscale.statistics.outliers import MEAN_ABSOLUTE, Outliers, Rejection
from chemscale.statistics.pixel_loops import Listed
from chemscale.statistics.ppca_card import Card, invert, pack_outer, triangle, unpack
from chemscale.statistics.ppca_kernels import LEAST_PRECISION, LOG_2PI, Model, SharedPass, Stats
from chemscale.statistics.ppca_kernels_weighted import WeightedPass

if TYPE_CHECKING:
    import torch

#: Share of the device's free memory that blocks left on it may take.
KEPT_SHARE = 0.7
#: A residual counts as at most so many of its errors in the misfit of a star, as on CPUs.
TOP = 100.0


def upload(flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None, *, device: str) -> Any:
    """A block as tensors on `device`, copies of the arrays: what is kept between passes."""
    import torch

    copy = partial(torch.tensor, device=device)
    return copy(flux), copy(missing), None if ivar is None else copy(ivar)


def room(device: str) -> int:
    """Bytes that blocks may take on the device, or on those of all workers; 0 on CPUs: there `keep_bytes` decides."""
    client = current_client()
    if client is None:
        from chemscale.runtime.devices import choose_device

        choose_device(device)
        return _free_bytes(device)
    return sum(client.run(_free_bytes, device).values())


def _free_bytes(device: str) -> int:
    from chemscale.runtime.devices import free_memory

    return int(KEPT_SHARE * free_memory(device))


@dataclass
class DeviceBlock:
    """A block under a model, as tensors on the device."""

    latent: torch.Tensor  # (n, K) float64: z of the per-pixel model, u of the shared one
    covariance: torch.Tensor  # (n, K, K) float64, of the same latents
    logdet: torch.Tensor  # (n,) float64
    residual: torch.Tensor  # (n, P), 0 where missing or rejected
    gone: torch.Tensor  # (n, P) bool, missing or rejected
    weight: torch.Tensor | None  # (n, P), 0 where gone; the per-pixel model's
    hits: torch.Tensor | None  # (n, P) bool, rejected
    anomalous: torch.Tensor | None  # (n,) bool
    misfit: torch.Tensor | None = None  # (n,)
    rejected_log: float = 0.0


def _outlying(
    residual: torch.Tensor,
    seen: torch.Tensor,
    precision: torch.Tensor | float,
    rejection: Rejection,
    doubt: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rejected pixels (n, P), anomalous stars and misfits (n,), by the rules of :func:`.outliers.find_outliers`."""
    import torch

    root = precision.sqrt() if isinstance(precision, torch.Tensor) else precision**0.5
    sizes = residual.abs() * root
    capped = sizes.clamp(max=TOP)
    total = capped.sum(1)
    limit = rejection.sigmas * (total / seen.clamp(min=1) / MEAN_ABSOLUTE).clamp(min=1.0)
    hits = sizes > limit[:, None]
    most = (rejection.most * seen.double()).long()
    many = hits.sum(1) > most
    rows = many.nonzero()[:, 0]
    if doubt and len(rows):
        following = sizes[rows].sort(1, descending=True).values.gather(1, most[rows, None])
        hits[rows] = sizes[rows] > following
    else:
        hits &= ~many[:, None]
    count = hits.sum(1)
    misfit = (total - (capped * hits).sum(1)) / (seen - count).clamp(min=1) / MEAN_ABSOLUTE
    return hits, many | (misfit > rejection.misfit), misfit


def _judge_twice(
    block: DeviceBlock,
    seen: torch.Tensor,
    precision: torch.Tensor | float,
    rejection: Rejection,
    solve: Callable[[torch.Tensor, torch.Tensor], tuple[Any, Any, Any, Any]],
) -> None:
    """:func:`.outliers.judge_twice`, and the doubted stars solved again without their outliers.

    `solve` gives latents, covariances, log-determinants and the residuals of all pixels of the stars with the numbers
    `rows`, from the posterior without the pixels `hits` (m, P).
    """
    hits, block.anomalous, block.misfit = _outlying(block.residual, seen, precision, rejection, doubt=True)
    block.hits = hits
    rows = hits.any(1).nonzero()[:, 0]
    if not len(rows):
        return
    left = solve(rows, hits[rows])[-1]
    own = precision if isinstance(precision, float) else precision[rows]
    hits[rows], block.anomalous[rows], block.misfit[rows] = _outlying(left, seen[rows], own, rejection)
    block.latent[rows], block.covariance[rows], block.logdet[rows], left = solve(rows, hits[rows])
    block.residual[rows] = left
    block.gone = block.gone | hits


def weighted_block(
    flux: Any, missing: Any, ivar: Any, model: Model, card: Card, unit: float, rejection: Rejection | None
) -> DeviceBlock:
    """:func:`.ppca_kernels_weighted.weighted_block` on a device; `residual` is that of all pixels not missing."""
    k = len(model.scale)
    basis, mean = card.pixels(model.basis), card.pixels(model.mean)
    noise = card.pixels(np.broadcast_to(model.noise, model.mean.shape).copy())
    scale = card.wide(model.scale)
    gone = card.marks(missing)
    weight = card.pixels(ivar) * unit**2
    weight = (weight / (1.0 + weight * noise)).masked_fill_(gone, 0.0)
    centred = (card.pixels(flux) / unit - mean).masked_fill_(gone, 0.0)
    outer = pack_outer(basis)

    def solve(w: Any, x: Any) -> tuple[Any, Any, Any, Any]:
        system = unpack(w @ outer, k) * scale[:, None] * scale
        system.diagonal(dim1=1, dim2=2).add_(1.0)
        covariance, logdet = invert(system)
        right = ((w * x) @ basis).double() * scale
        latent = (covariance @ right[:, :, None])[:, :, 0]
        return latent, covariance, logdet, x - (latent * scale).to(basis.dtype) @ basis.T

    def without(rows: Any, hits: Any) -> tuple[Any, Any, Any, Any]:
        return solve(weight[rows].masked_fill(hits, 0.0), centred[rows])

    block = DeviceBlock(*solve(weight, centred), gone, weight, None, None)
    if rejection is not None:
        _judge_twice(block, (weight > 0).sum(1), weight, rejection, without)
        assert block.hits is not None
        block.rejected_log = float(weight[block.hits].double().log().sum())
        weight.masked_fill_(block.hits, 0.0)
    return block


def weighted_stats(
    flux: Any, missing: Any, ivar: Any, *, task: WeightedPass, dtype: np.dtype, unit: float, device: str
) -> Stats:
    """:func:`.ppca_kernels_weighted.weighted_stats` on a device."""
    import torch

    with torch.inference_mode():
        card, model = Card(device, np.dtype(dtype)), task.model
        k = len(model.scale)
        block = weighted_block(flux, missing, ivar, model, card, unit, task.rejection)
        weight, z, covariance = block.weight, block.latent, block.covariance
        assert weight is not None
        seen = (weight > 0).sum(1)
        valid = seen > 0
        i, j = triangle(k, device)
        second = (z[:, :, None] * z[:, None, :] + covariance)[:, i, j]
        rows = (torch.cat([second, z, torch.ones_like(z[:, :1])], 1) * valid[:, None]).to(card.large)
        sums = (weight.T @ rows).double()
        centred = block.residual + (z * card.wide(model.scale)).to(card.large) @ card.pixels(model.basis).T
        cross = ((weight * centred).T @ rows[:, len(i) :]).double()
        product = weight * block.residual
        squares = product.double() ** 2
        w2 = weight.double() ** 2
        power, strength = squares.sum(1), w2.sum(1)
        logsum = torch.where(weight > 0, weight, torch.ones_like(weight)).double().log().sum(1)
        chi2 = (block.residual.double() * product.double()).sum(1) + (z**2).sum(1)
        loglike = -0.5 * (seen * LOG_2PI - logsum + block.logdet + chi2)
        found = {
            "second": sums[:, : len(i)],
            "first": sums[:, len(i) :],
            "cross": cross,
            "latent": z[valid].sum(0),
            "latent2": z[valid].T @ z[valid] + covariance[valid].sum(0),
            "cov": covariance[valid].diagonal(dim1=1, dim2=2).sum(0),
            "n": valid.sum(),
            "count": (weight > 0).sum(0),
            "loglike": loglike[valid].sum(),
            "w2r2": squares.sum(0),
            "w2": w2.sum(0),
            "spread": (z[valid] ** 2).T @ power[valid],
            "power2": (z**2).sum(0),
            "power4": (z**4).sum(0),
            "lever": torch.einsum("n,nij->ij", strength, covariance) * card.wide(np.outer(model.scale, model.scale)),
            "strength": strength.sum(),
        }
        score = (product @ card.pixels(task.extra)) * covariance[:, -1, -1:].to(card.large)
        found["extra"] = product.T @ score
        if block.hits is not None and task.rejection is not None:
            found |= _rejected(block)
            found["loglike"] = found["loglike"] - 0.5 * (
                block.hits.sum() * (LOG_2PI + task.rejection.sigmas**2) - block.rejected_log
            )
        return _fetched(found)


def shared_block(
    flux: Any, missing: Any, ivar: Any, task: SharedPass, card: Card, unit: float
) -> tuple[DeviceBlock, torch.Tensor]:
    """:func:`.ppca_kernels.shared_block` on a device, and the centred flux, 0 where missing."""
    import torch

    model = task.model
    k, noise = len(model.scale), float(model.noise)
    basis = card.pixels(model.basis)
    scale = card.wide(model.scale)
    gone = card.marks(missing)
    centred = (card.pixels(flux) / unit - card.pixels(model.mean)).masked_fill_(gone, 0.0)
    outer = pack_outer(basis)
    prior = torch.clamp(noise / scale**2, min=LEAST_PRECISION)
    constant = float(np.sum(2 * np.log(model.scale) - np.log(noise)))

    def solve(hidden: Any, x: Any) -> tuple[Any, Any, Any, Any]:
        system = unpack((~hidden).to(card.large) @ outer, k)
        system.diagonal(dim1=1, dim2=2).add_(prior)
        inverse, logdet = invert(system)
        right = (x.masked_fill(hidden, 0.0) @ basis).double()
        latent = (inverse @ right[:, :, None])[:, :, 0]
        return latent, noise * inverse, logdet + constant, x - latent.to(basis.dtype) @ basis.T

    def without(rows: Any, hits: Any) -> tuple[Any, Any, Any, Any]:
        latent, covariance, logdet, left = solve(gone[rows] | hits, centred[rows])
        return latent, covariance, logdet, left.masked_fill_(gone[rows], 0.0)

    block = DeviceBlock(*solve(gone, centred), gone, None, None, None)
    block.residual.masked_fill_(gone, 0.0)
    if task.rejection is not None:
        precision = 1.0 / noise if ivar is None else (card.pixels(ivar) * unit**2).masked_fill_(gone, 0.0)
        _judge_twice(block, (~gone).sum(1), precision, task.rejection, without)
        block.residual.masked_fill_(block.gone, 0.0)
    return block, centred


def shared_stats(
    flux: Any, missing: Any, ivar: Any, *, task: SharedPass, dtype: np.dtype, unit: float, device: str
) -> Stats:
    """:func:`.ppca_kernels.shared_stats` on a device."""
    import torch

    with torch.inference_mode():
        card, model = Card(device, np.dtype(dtype)), task.model
        k, noise, width = len(model.scale), float(model.noise), task.extra.shape[1]
        block, centred = shared_block(flux, missing, ivar, task, card, unit)
        residual, covariance, gone = block.residual, block.covariance, block.gone
        seen = (~gone).sum(1)
        valid = seen > 0
        along = residual @ card.pixels(task.extra)
        squares = (residual.double() ** 2).sum(1)
        columns = [along, block.latent.to(card.large), torch.ones_like(residual[:, :1])]
        back = (residual.T @ torch.cat(columns, 1)).double()
        u = block.latent[valid]
        distance = squares / noise + ((block.latent / card.wide(model.scale)) ** 2).sum(1)
        loglike = -0.5 * (seen * (LOG_2PI + np.log(noise)) + block.logdet + distance)
        i, j = triangle(k, device)
        packed = (covariance * valid[:, None, None])[:, i, j].to(card.large)
        missed = unpack(gone.to(card.large).T @ packed, k)
        found = {
            "n": valid.sum(),
            "count": (~gone).sum(0),
            "resid_extra": back[:, :width],
            "resid_latent": back[:, width : width + k],
            "resid": back[:, -1],
            "latent": u.sum(0),
            "latent2": u.T @ u,
            "latent_extra": u.T @ along[valid].double(),
            "cov": covariance[valid].sum(0),
            "missing_cov": (missed @ card.wide(model.basis)[:, :, None])[:, :, 0],
            "rss": squares.sum(),
            "spread": (u**2).T @ squares[valid] + (u**4).sum(0),
            "loglike": loglike[valid].sum(),
        }
        if block.hits is not None and task.rejection is not None:
            found |= _rejected(block)
            per_hit = LOG_2PI + np.log(noise) + task.rejection.sigmas**2
            found["loglike"] = found["loglike"] - 0.5 * block.hits.sum() * per_hit
        if task.rare.size:
            rare = torch.as_tensor(task.rare, device=device)
            observed = (~card.marks(missing)[:, rare]).to(card.large)
            second = ((block.latent[:, :, None] * block.latent[:, None, :] + covariance)[:, i, j]) * valid[:, None]
            first = torch.cat([block.latent, torch.ones_like(block.latent[:, :1])], 1) * valid[:, None]
            found["rare_second"] = observed.T @ second.to(card.large)
            found["rare_first"] = observed.T @ first.to(card.large)
            found["rare_cross"] = centred[:, rare].T @ first.to(card.large)
        return _fetched(found)


def embed_block(
    flux: Any,
    missing: Any,
    ivar: Any,
    *,
    model: Model,
    weighted: bool,
    rejection: Rejection | None,
    dtype: np.dtype,
    device: str,
) -> tuple[np.ndarray, np.ndarray, Outliers | None]:
    """Posterior means and variances (n, K) of a block's coordinates, and its outliers: on a device what
    :func:`.ppca_embed.embed_block` finds on CPUs."""
    import torch

    with torch.inference_mode():
        card = Card(device, np.dtype(dtype))
        if weighted:
            block = weighted_block(flux, missing, ivar, model, card, 1.0, rejection)
            scale = card.wide(model.scale)
        else:
            task = SharedPass(model, np.zeros((len(model.mean), 0)), rejection=rejection)
            block, _ = shared_block(flux, missing, ivar, task, card, 1.0)
            scale = torch.ones(len(model.scale), dtype=torch.float64, device=device)
        mean, variance = block.latent * scale, block.covariance.diagonal(dim1=1, dim2=2) * scale**2
        found = mean.cpu().numpy(), variance.cpu().numpy()
        if block.hits is None or block.misfit is None or block.anomalous is None:
            return *found, None
        listed = Listed.of(block.hits.cpu().numpy())
        return *found, Outliers(listed, block.misfit.cpu().numpy(), block.anomalous.cpu().numpy())


def _rejected(block: DeviceBlock) -> dict[str, torch.Tensor]:
    hits, anomalous = block.hits, block.anomalous
    assert hits is not None and anomalous is not None
    return {"rejected": hits.sum(0), "rejected_stars": hits.any(1).sum(), "anomalous": anomalous.sum()}


def _fetched(found: dict[str, torch.Tensor]) -> Stats:
    """The sums as float64 arrays: the device is waited for once a block."""
    import torch

    flat = torch.cat([v.double().reshape(-1) for v in found.values()]).cpu().numpy()
    ends = np.cumsum([v.numel() for v in found.values()])
    return {
        key: flat[end - value.numel() : end].reshape(tuple(value.shape))
        for (key, value), end in zip(found.items(), ends, strict=True)
    }


#: Kernel of each noise model.
KERNELS: dict[str, Callable[..., Stats]] = {"shared": shared_stats, "per-pixel": weighted_stats}
