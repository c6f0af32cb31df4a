"""One shard: write it chunk by chunk, prove that it arrived, and leave a marker that says so.

A writer holds one chunk of pixels, whatever the size of a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import google_crc32c
import numpy as np

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jsonio import dump
from chemscale.schema import Flag
from chemscale.survey.sources.base import Rejection
from chemscale.survey.store.layout import PIXEL_VARIABLES, ShardEncoder, chunk_file, index_entries
from chemscale.survey.store.manifest import (
    COVERAGE_BINS,
    ROOT,
    StoreHeader,
    check_back,
    checksum,
    columns_name,
    marker_name,
    pack,
    write_verified,
)


class Counts:
    """What ``chemscale info`` shows of a shard's pixels, gathered chunk by chunk."""

    def __init__(self, n_pixels: int):
        from chemscale.survey.ingest.censoring_kernels import Tally

        flagged, per_pixel, coverage = (np.zeros(n, np.int64) for n in (len(Flag), n_pixels, COVERAGE_BINS))
        self._tally = Tally(flagged, per_pixel, coverage, np.array([np.inf, -np.inf]))
        self._n_used = self._n_stars = self._n_rows = 0

    @property
    def used_per_pixel(self) -> np.ndarray:
        """Stars that use each pixel (P,)."""
        return self._tally.used_per_pixel

    def add(self, pixels: Mapping[str, np.ndarray], filled: np.ndarray) -> None:
        """Count rows (n, P); `filled` (n,) is 0 in empty rows."""
        from chemscale.survey.ingest.censoring_kernels import Pixels, count_block

        block = Pixels(*(np.ascontiguousarray(pixels[name]) for name in PIXEL_VARIABLES))
        self._n_used += count_block(block, filled, self._tally)
        self._n_stars += int(np.count_nonzero(filled))
        self._n_rows += len(filled)

    def summary(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "n_stars": self._n_stars,
            "n_empty": self._n_rows - self._n_stars,
            "n_used": int(self._n_used),
            "flagged": {str(bit.name).lower(): int(n) for bit, n in zip(Flag, self._tally.flagged, strict=True)},
            "coverage": self._tally.coverage.tolist(),
            "flux_range": [float(v) for v in self._tally.span] if self._n_stars else None,
        }


class ShardWriter:
    """Writes the pixel files of one shard, chunk after chunk; use it in a `with` block.

    Files appear under their names with :meth:`close`; leaving the block without it leaves nothing.
    """

    def __init__(self, folder: Folder, header: StoreHeader, shard: int):
        self.folder, self.header, self.shard = folder, header, shard
        self._names = {name: chunk_file(name, shard, 2) for name in PIXEL_VARIABLES}
        self._encoders = {name: ShardEncoder(name, header.layout) for name in PIXEL_VARIABLES}
        self._sums = {name: [0, 0] for name in PIXEL_VARIABLES}
        self._stack = ExitStack()
        self._files = {name: self._stack.enter_context(folder.writing(n, big=True)) for name, n in self._names.items()}
        self.counts = Counts(header.n_pixels)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, pixels: Mapping[str, np.ndarray], n: int) -> None:
        """Write the first `n` rows of `pixels` as the next chunk: `chunk_stars`, fewer only at the end.

        The caller has them counted by `counts`.
        """
        for name in PIXEL_VARIABLES:
            self._put(name, self._encoders[name].chunk(pixels[name][:n]))

    def _put(self, name: str, encoded: list[bytes]) -> None:
        sums = self._sums[name]
        for data in encoded:
            sums[0], sums[1] = google_crc32c.extend(sums[0], data), sums[1] + len(data)
            self._files[name].put(data)

    def close(
        self,
        columns: Mapping[str, np.ndarray],
        status: np.ndarray,
        *,
        rejected: Iterable[Rejection] = (),
        fingerprint: str = "",
    ) -> dict[str, Any]:
        """Finish the files, read them back, write the per-star values and, last, the marker.

        Parameters
        ----------
        columns : mapping
            Per-star values, (n_rows,) or (n_rows, n_elements).
        status : ndarray (n_rows,) uint8
            1 where the row holds a star, 0 where it is empty.
        rejected : iterable of Rejection
            Stars of this shard that were quarantined.
        fingerprint : str
            Digest of the shard's inputs, kept in the marker.

        Returns
        -------
        dict
            The marker.

        Raises
        ------
        ReadBackError
            What was read back is not what was written.
        """
        for name in PIXEL_VARIABLES:
            self._put(name, self._encoders[name].end())
            self._files[name].commit(sync=True)
        files = {}
        for name in PIXEL_VARIABLES:
            files[self._names[name]] = check_back(self.folder, self._names[name], *self._sums[name])
            sealed = checksum(b"".join(self._encoders[name].trailers))
            files[self._names[name]]["chunks"] = [index_entries(self.header.layout), sealed]
        if self.folder.exists(ROOT):  # we are left over from a job whose scheduler is gone; another one carried on
            raise StoreError(f"{self.folder.root}: was completed by another job meanwhile", "nothing is left to do")
        packed = pack({**columns, "status": status, "used_per_pixel": self.counts.used_per_pixel})
        marker = {
            "shard": self.shard,
            "rows": list(self.header.layout.rows(self.shard, self.header.n_rows)),
            "fingerprint": fingerprint,
            "files": files,
            "part": write_verified(self.folder, columns_name(self.shard), packed),
            "statistics": self.counts.summary(),
            "rejected": [asdict(r) for r in rejected],
        }
        self.folder.write(marker_name(self.shard), dump(marker), sync=True)
        return marker


def write_shard(
    folder: Folder,
    header: StoreHeader,
    shard: int,
    pixels: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
    status: np.ndarray,
) -> dict[str, Any]:
    """Write one shard that is in memory: `flux`, `ivar` float32 and `flags` uint8, each (n_rows, P)."""
    start, stop = header.layout.rows(shard, header.n_rows)
    for name in PIXEL_VARIABLES:
        shape = (stop - start, header.n_pixels)
        if pixels[name].shape != shape:
            raise StoreError(f"shard {shard}: {name} has shape {pixels[name].shape}, must be {shape}", "report this")
    step = header.layout.chunk_stars
    with ShardWriter(folder, header, shard) as writer:
        for at in range(0, stop - start, step):
            chunk = {n: pixels[n][at : at + step] for n in PIXEL_VARIABLES}
            writer.counts.add(chunk, status[at : at + step])
            writer.add(chunk, len(chunk["flux"]))
        return writer.close(columns, status)
