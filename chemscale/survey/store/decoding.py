"""Pixel variables of a local store, read straight from the files of their shards.

What Zarr's sharding codec does, less its event loop, its pool of threads and its copies: chunks are decoded one after
the other in the thread that asks, where it can into the array that is returned. A worker of one thread then keeps
one core busy and no more, and reading takes a third of the time. The first time a process touches a shard it is
compared with the store's ledger, by the checksums of its chunks: a shard that is missing or another one's is an
error. Object stores, and arrays of other codecs than :func:`~chemscale.survey.store.layout.pixel_codecs` may choose,
are left to zarr-python.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from chemscale.arrays import cut_every, scratch
from chemscale.survey.store.layout import chunk_file
from chemscale.survey.store.ledger import Touched
from chemscale.survey.store.manifest import ABSENT


@dataclass(frozen=True)
class ShardFiles:
    """One variable: rows of stars in shards of `shard` rows, in chunks of `chunk` rows.

    Attributes
    ----------
    folder : Path
        Of the group.
    shape : tuple of int
        Rows, and what a row is made of.
    blosc, checked : bool
        Chunks are compressed by Blosc; end with their CRC32C.
    """

    folder: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    shard: int
    chunk: int
    blosc: bool
    checked: bool
    touched: Touched | None = None

    @classmethod
    def of(
        cls, folder: str | os.PathLike[str], name: str, array: Any, touched: Touched | None = None
    ) -> ShardFiles | None:
        """How to read `array` (a ``zarr.Array`` called `name` in a local folder); None where zarr has to do it.

        Shards are compared with what `touched` expects; without it any shard is taken for what it is.
        """
        from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec

        meta: Any = array.metadata
        codecs: Any = getattr(meta, "codecs", ())
        dtype = np.dtype(array.dtype)
        if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec) or dtype.kind not in "fiub":
            return None
        sharding, rest = codecs[0], tuple(array.shape[1:])
        inner, index = ([type(c) for c in group] for group in (sharding.codecs, sharding.index_codecs))
        to_bytes = [c for c in (*sharding.codecs, *sharding.index_codecs) if isinstance(c, BytesCodec)]
        outer = tuple(meta.chunk_grid.chunk_shape)
        fits = (
            inner[:1] == [BytesCodec]
            and inner[1:] in ([], [BloscCodec], [Crc32cCodec], [BloscCodec, Crc32cCodec])
            and index == [BytesCodec, Crc32cCodec]
            and all(c.endian is None or c.endian.value == "little" for c in to_bytes)
            and sharding.index_location.value == "end"
            and outer[1:] == rest
            and tuple(sharding.chunk_shape[1:]) == rest
            and meta.encode_chunk_key((3,) + (0,) * len(rest)) == chunk_file("", 3, array.ndim).lstrip("/")
        )
        if not fits:
            return None
        return cls(
            Path(folder),
            name,
            tuple(array.shape),
            dtype.newbyteorder("<"),
            outer[0],
            int(sharding.chunk_shape[0]),
            BloscCodec in inner,
            Crc32cCodec in inner,
            touched,
        )

    def read(self, start: int, stop: int, reuse: bool = False, out: np.ndarray | None = None) -> np.ndarray:
        """Rows ``[start, stop)``, in `out` where it is given; with `reuse` in a buffer of this thread instead.

        The next call with `reuse` fills the same buffer again.

        Raises
        ------
        ValueError
            A shard that is missing, a checksum that does not fit, a chunk that cannot be decoded.
        OSError
        """
        shape = (max(0, stop - start), *self.shape[1:])
        if out is not None and out.shape == shape and out.dtype == self.dtype and out.flags.c_contiguous:
            pass
        elif reuse:
            out = scratch(f"rows of {self.name}", shape, self.dtype)
        else:
            out = np.empty(shape, self.dtype)
        for shard, low, high in cut_every(start, stop, self.shard):
            first = shard * self.shard
            self._shard(shard, low - first, high - first, out[low - start : high - start])
        return out

    def _shard(self, shard: int, start: int, stop: int, out: np.ndarray) -> None:
        """Rows ``[start, stop)`` of a shard."""
        name = chunk_file(self.name, shard, len(self.shape))
        path = self.folder / name
        try:
            file = FileIO(path)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        with file:
            index = self._index(file)
            self._compare(name, file, index)
            for chunk, low, high in cut_every(start, stop, self.chunk):
                offset, length = index[chunk]
                rows = out[low - start : high - start]
                where = f"{path}, chunk {chunk}"
                if offset == ABSENT:
                    raise ValueError(f"{where} is missing")
                self._decode(_fetch(file, int(offset), int(length), where), low - chunk * self.chunk, rows, where)

    def _compare(self, name: str, file: FileIO, index: np.ndarray) -> None:
        """The first time in a process, and when the file has changed: is this the shard that was written?"""
        if self.touched is None:
            return
        handle = file.fileno()
        stat = os.fstat(handle)
        if self.touched.known(name, stat):
            return
        expected = self.touched.expect(name)
        if stat.st_size != expected["bytes"]:
            raise ValueError(f"{file.name} has {stat.st_size} bytes, {expected['bytes']} were written")
        ends = [int(offset) + int(length) for offset, length in index if offset != ABSENT]
        trailers = b"".join(os.pread(handle, 4, end - 4) for end in ends)
        if "chunks" in expected and expected["chunks"][1] != google_crc32c.value(trailers):
            raise ValueError(f"{file.name} is not the shard that was written here (checksum)")
        self.touched.note(name, stat)

    def _index(self, file: FileIO) -> np.ndarray:
        """Offset and length of every chunk of an open shard."""
        size = 16 * (self.shard // self.chunk) + 4
        where = f"{file.name}, index"
        data = _fetch(file, file.seek(0, os.SEEK_END) - size, size, where)
        return _checked(data, where).view("<u8").reshape(-1, 2).copy()

    def _decode(self, data: np.ndarray, skip: int, rows: np.ndarray, where: str) -> None:
        """Rows of a chunk after its first `skip` ones, into `rows`."""
        if self.checked:
            data = _checked(data, where)
        whole = (self.chunk, *self.shape[1:])
        size = int(np.prod(whole)) * self.dtype.itemsize
        if not self.blosc:
            if data.size != size:
                raise ValueError(f"{where}: {data.size} bytes instead of {size}")
            rows[...] = data.view(self.dtype).reshape(whole)[skip : skip + len(rows)]
            return
        from numcodecs import blosc

        if len(data) < 16 or int(data[4:8].view("<u4")[0]) != size:  # Blosc's header: the size of what comes out
            raise ValueError(f"{where}: is not a chunk of {size} bytes")
        if len(rows) == self.chunk:
            blosc.decompress(data, rows)
        else:
            values = scratch("values of a chunk", (size,), np.uint8)
            blosc.decompress(data, values)
            rows[...] = values.view(self.dtype).reshape(whole)[skip : skip + len(rows)]


def _fetch(file: FileIO, offset: int, length: int, where: str) -> np.ndarray:
    """Bytes of a file, in a buffer of this thread that the next call uses again."""
    if offset < 0 or offset + length > file.seek(0, os.SEEK_END):
        raise ValueError(f"{where}: the file is shorter than it says")
    file.seek(offset)
    data = scratch("bytes of a chunk", (length,), np.uint8)
    done = 0
    while done < length:
        n = file.readinto(data[done:].data)
        if not n:
            raise ValueError(f"{where}: the file ended early")
        done += n
    return data


def _checked(data: np.ndarray, where: str) -> np.ndarray:
    """`data` without the CRC32C at its end, which fits."""
    content = data[:-4]
    if google_crc32c.value(content) != int(data[-4:].view("<u4")[0]):
        raise ValueError(f"{where}: its checksum does not fit, the file is damaged")
    return content
