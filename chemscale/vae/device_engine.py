"""Inference on a torch device: raw pixels go to it, and everything else happens there.

Decoding threads write flux, inverse variance and flags as they are stored (9 bytes a pixel) into page-locked buffers
that are made once and go round; everything else, cleaning included, happens on the device. Nothing else of the size of
the spectra is made on the host.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chemscale.errors import OutOfMemory
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.scores import GPU_BATCH, scores

#: Stars of a batch below which a device that is out of memory is given up.
SMALLEST_BATCH = 64
Buffers = tuple[Tensor, Tensor, Tensor]


@dataclass
class RawBlock:
    """Flux, inverse variance and flags of n stars, in the first rows of the buffers they lie in."""

    buffers: Buffers
    n: int


class DeviceEngine:
    """Latents and scores of raw spectra through one model, on the model's device.

    Safe to use from several threads at once: they load side by side, and compute one after the other.

    Parameters
    ----------
    model : ChemicalVAE
        In evaluation mode, on its device.
    bfloat16 : bool
        Autocast: less exact, and on an H100 no faster.
    batch : int
        Stars computed at a time, at most; halved when the device is out of memory.
    """

    def __init__(self, model: ChemicalVAE, *, bfloat16: bool = False, batch: int = GPU_BATCH):
        self.model, self.bfloat16, self.batch = model, bfloat16, batch
        self.device = model.mean.device
        self._computing = threading.Lock()
        self._free: queue.SimpleQueue[Buffers] = queue.SimpleQueue()

    def load(self, n: int, pixels: int, fill: Callable[[Sequence[np.ndarray]], None]) -> RawBlock:
        """A block that `fill` writes where the device can fetch it from.

        Parameters
        ----------
        n, pixels : int
            Stars, and pixels of each.
        fill : callable
            Gets three arrays (n, pixels) for flux (float32), inverse variance (float32) and flags (uint8).
        """
        buffers = self._take(n, pixels)
        fill([buffer.numpy()[:n] for buffer in buffers])
        return RawBlock(buffers, n)

    def _take(self, n: int, pixels: int) -> Buffers:
        """Buffers of `n` stars or more: free ones, else new ones (as many as are in flight, and no more)."""
        try:
            buffers = self._free.get_nowait()
            if len(buffers[0]) >= n:
                return buffers
        except queue.Empty:
            pass
        pin = self.device.type == "cuda"
        kinds = (torch.float32, torch.float32, torch.uint8)
        flux, ivar, flags = (torch.empty((n, pixels), dtype=kind, pin_memory=pin) for kind in kinds)
        return flux, ivar, flags

    @torch.inference_mode()
    def __call__(self, blocks: Sequence[RawBlock], bits: int, floor: float = 0.0) -> dict[str, np.ndarray]:
        """Latents and scores of blocks, one after the other, as :func:`~chemscale.vae.scores.scores` gives them.

        Parameters
        ----------
        blocks : sequence of RawBlock
            Their buffers are given back.
        bits : int
            A pixel is missing where ``flags & bits``, or flux or ivar is of no use.
        floor : float
            Error added in quadrature to every pixel, as in training.

        Returns
        -------
        dict
            And `n_used`. A star without a used pixel gets NaN everywhere.

        Raises
        ------
        OutOfMemory
            The device's memory does not hold :data:`SMALLEST_BATCH` stars.
        """
        with self._computing:
            found = self._fitting(blocks, bits, floor)
        for block in blocks:
            self._free.put(block.buffers)
        return found

    def _fitting(self, blocks: Sequence[RawBlock], bits: int, floor: float) -> dict[str, np.ndarray]:
        """In batches that the device's memory holds."""
        while True:
            try:
                return self._all(blocks, bits, floor)
            except torch.OutOfMemoryError as err:
                if self.batch <= SMALLEST_BATCH:
                    raise OutOfMemory(
                        f"{self.device}: out of memory with {self.batch} stars at a time: {err}",
                        "free the device's memory (other processes, other workers on it), or pass --device cpu",
                    ) from err
                self.batch = max(SMALLEST_BATCH, self.batch // 2)
            # outside of the handler: the error holds on to the tensors of the attempt
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _all(self, blocks: Sequence[RawBlock], bits: int, floor: float) -> dict[str, np.ndarray]:
        parts: list[dict[str, Tensor]] = []
        for rows in self._batches([b.n for b in blocks]):
            pixels = [
                [x[a:b].to(self.device, non_blocking=True) for x in blocks[k].buffers] for k, a, b in rows
            ]  # one copy for each block
            flux, ivar, flags = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*pixels))
            parts.append(self._batch(flux, ivar, flags, bits, floor))
        found = {k: torch.cat([p[k] for p in parts]).cpu().numpy() for k in parts[0]}
        empty = found["n_used"] == 0
        for key, values in found.items():
            if key != "n_used":
                values[empty] = -1 if key == "local_window" else np.nan
        return found

    def _batches(self, sizes: Sequence[int]) -> list[list[tuple[int, int, int]]]:
        """Rows of each batch: (block, start, stop)."""
        batches: list[list[tuple[int, int, int]]] = [[]]
        room = self.batch
        for k, size in enumerate(sizes):
            start = 0
            while start < size:
                if not room:
                    batches.append([])
                    room = self.batch
                stop = min(size, start + room)
                batches[-1].append((k, start, stop))
                room -= stop - start
                start = stop
        return batches

    def _batch(self, flux: Tensor, ivar: Tensor, flags: Tensor, bits: int, floor: float) -> dict[str, Tensor]:
        flux, weight = clean_on_device(flux, ivar, flags, bits, floor)
        cast = torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()
        with cast:
            found = scores(self.model, flux, weight, floor)
        found = {k: v if k == "local_window" else v.float() for k, v in found.items()}
        return found | {"n_used": (weight > 0).sum(1, dtype=torch.int32)}


def clean_on_device(flux: Tensor, ivar: Tensor, flags: Tensor, bits: int, floor: float) -> tuple[Tensor, Tensor]:
    """Flux (1 where missing) and weights (0 where missing), (n, P): :func:`chemscale.vae.data.clean` in torch."""
    used = (flux.abs() <= torch.finfo(torch.float32).max) & (ivar > 0) & (ivar <= torch.finfo(torch.float32).max)
    used &= (flags & bits) == 0
    weight = torch.where(used, ivar / (1.0 + floor**2 * ivar) if floor else ivar, torch.zeros_like(ivar))
    return torch.where(used, flux, torch.ones_like(flux)), weight
