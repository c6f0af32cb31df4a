"""How a survey is cut into chunks and shards, and the codecs that write them.

A chunk is what one read decodes, a shard is one file and one writer's task. Both hold
whole spectra. Sizes follow from a memory target and from the number of stars, never from
the number of workers: the same input gives the same bytes on any machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chemscale.errors import InputError

#: Bytes of flux + ivar + flags of one star and pixel.
BYTES_PER_PIXEL = 4 + 4 + 1
PIXEL_VARIABLES = ("flux", "ivar", "flags")


@dataclass(frozen=True)
class Layout:
    """Chunking of a store.

    Parameters
    ----------
    chunk_stars : int
        Stars in a Zarr chunk of `flux`, `ivar`, `flags` (the unit of reading).
    shard_stars : int
        Stars in a shard (one file a variable, the unit of writing); a multiple of `chunk_stars`.
    label_stars : int
        Stars in a chunk of the per-star variables; a multiple of `shard_stars`.
    """

    chunk_stars: int
    shard_stars: int
    label_stars: int

    def __post_init__(self) -> None:
        ok = (
            self.chunk_stars > 0
            and self.shard_stars > 0
            and self.shard_stars % self.chunk_stars == 0
            and self.label_stars > 0
            and self.label_stars % self.shard_stars == 0
        )
        if not ok:
            raise InputError(
                f"layout {asdict(self)}: shard_stars must be a multiple of chunk_stars, label_stars of shard_stars",
                "leave the layout out to have one chosen",
            )

    def n_shards(self, n_rows: int) -> int:
        """Number of shards for `n_rows` rows."""
        return -(-n_rows // self.shard_stars)

    def rows(self, shard: int, n_rows: int) -> tuple[int, int]:
        """Rows ``[start, stop)`` of a shard."""
        return shard * self.shard_stars, min((shard + 1) * self.shard_stars, n_rows)


def choose_layout(n_rows: int, n_pixels: int, *, shard_bytes: int = 320 << 20, chunk_bytes: int = 40 << 20) -> Layout:
    """Layout for a survey.

    A shard's pixels (all three variables) stay under `shard_bytes`, which is what a writer
    holds; a chunk's under `chunk_bytes`. Small surveys get smaller shards, so that at least
    eight tasks can share the work.

    Parameters
    ----------
    n_rows, n_pixels : int
        Planned stars and pixels a spectrum.
    """
    row = max(1, n_pixels) * BYTES_PER_PIXEL
    target = int(np.clip(_floor_power(chunk_bytes // row), 64, 4096))
    chunk = int(np.clip(_floor_power(n_rows // 8), 64, target))
    largest = max(1, shard_bytes // (row * chunk))
    wanted = max(1, -(-n_rows // (8 * chunk)))
    shard = chunk * min(largest, wanted, 64)
    label = shard * max(1, min(262_144 // shard, -(-n_rows // shard)))
    return Layout(chunk, shard, label)


def _floor_power(n: int) -> int:
    return 1 << max(0, int(n).bit_length() - 1)


#: Blosc settings of the pixel variables: shuffle, element size.
_SHUFFLE = {"flux": ("shuffle", 4), "ivar": ("shuffle", 4), "flags": ("noshuffle", 1)}
#: Bytes Blosc compresses at a time: a quarter of a processor's level-2 cache or less.
_BLOSC_BLOCK = 1 << 16


def pixel_codecs(name: str) -> list[Any]:
    """Compressors of a pixel variable's chunks.

    LZ4 after a shuffle of bytes: noise leaves only the exponents to squeeze, and a shuffle of bits takes
    twice as long for the same size. A CRC32C on every chunk, because the compressors do not notice a flipped bit.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec

    shuffle, size = _SHUFFLE[name]
    settings: Any = {"shuffle": shuffle, "typesize": size, "blocksize": _BLOSC_BLOCK}
    return [BloscCodec(cname="lz4", clevel=1, **settings), Crc32cCodec()]


def label_codecs() -> list[Any]:
    """Compressors of the per-star variables."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return [ZstdCodec(level=3, checksum=True), Crc32cCodec()]


def array_spec(name: str, dtype: str, shape: tuple[int, ...], layout: Layout) -> dict[str, Any]:
    """Keyword arguments of :func:`zarr.create_array` for a variable of the store."""
    import zarr

    if name in PIXEL_VARIABLES:
        return {
            "shape": shape,
            "dtype": dtype,
            "chunks": (layout.chunk_stars, *shape[1:]),
            "shards": (layout.shard_stars, *shape[1:]),
            "compressors": pixel_codecs(name),
            "fill_value": 0,
        }
    is_text = dtype == "str"
    if name in ("wavelength", "element"):
        chunks = tuple(max(1, n) for n in shape)
    else:
        chunks = (layout.label_stars, *shape[1:])
    return {
        "shape": shape,
        "dtype": zarr.dtype.VariableLengthUTF8() if is_text else dtype,
        "chunks": chunks,
        "compressors": label_codecs(),
        "fill_value": "" if is_text else (np.nan if dtype.startswith("float") else 0),
    }


def metadata(
    name: str, dtype: str, shape: tuple[int, ...], layout: Layout, dims: tuple[str, ...], attrs: dict[str, Any]
) -> bytes:
    """The ``zarr.json`` of a variable."""
    import zarr
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    spec = array_spec(name, dtype, shape, layout)
    zarr.create_array(MemoryStore(memory), dimension_names=dims, attributes=attrs, **spec)
    return memory["zarr.json"].to_bytes()


def encode(name: str, dtype: str, values: np.ndarray, layout: Layout) -> bytes:
    """The bytes of one shard (pixels) or chunk (labels) holding `values`.

    Encoding in memory first means that what was written can be compared with what was
    meant, and that a file appears under its name complete or not at all.
    """
    if name in PIXEL_VARIABLES:
        return _encode_shard(name, values, layout)
    import zarr
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    spec = array_spec(name, dtype, values.shape, layout)  # no setting of the process: others encode at the same time
    array = zarr.create_array(MemoryStore(memory), config={"write_empty_chunks": True}, **spec)
    array[...] = values
    key = "c/" + "/".join("0" * values.ndim)
    return memory[key].to_bytes()


def index_entries(layout: Layout) -> int:
    """Entries of a shard's index."""
    return layout.shard_stars // layout.chunk_stars


class ShardEncoder:
    """One pixel variable of a shard, chunk by chunk, in the layout of Zarr's sharding codec with :func:`pixel_codecs`.

    The same bytes that zarr-python writes, in half its time (no event loop, no copies of
    chunks): chunks one after the other, each Blosc then CRC32C; the index at the end, one
    (offset, length) pair of uint64 a chunk and its CRC32C. Chunks without rows are absent.
    """

    def __init__(self, name: str, layout: Layout):
        self._shuffle = {"shuffle": 1, "noshuffle": 0}[_SHUFFLE[name][0]]
        self._chunk_stars = layout.chunk_stars
        #: the CRC32C at the end of every chunk so far
        self.trailers: list[bytes] = []
        n_chunks = index_entries(layout)
        self._index = np.full((n_chunks, 2), np.iinfo(np.uint64).max, dtype="<u8")
        self._at = self._done = 0

    def chunk(self, values: np.ndarray) -> list[bytes]:
        """Bytes of the next chunk; a last one with fewer rows is filled up with zeros, as Zarr does."""
        import google_crc32c
        from numcodecs import blosc

        values = np.ascontiguousarray(values)
        if len(values) < self._chunk_stars:
            whole = np.zeros((self._chunk_stars, *values.shape[1:]), values.dtype)
            whole[: len(values)] = values
            values = whole
        packed = blosc.compress(values, b"lz4", 1, self._shuffle, _BLOSC_BLOCK)
        self._index[self._done] = self._at, len(packed) + 4
        self._at += len(packed) + 4
        self._done += 1
        self.trailers.append(google_crc32c.value(packed).to_bytes(4, "little"))
        return [packed, self.trailers[-1]]

    def end(self) -> list[bytes]:
        """Bytes after the last chunk."""
        import google_crc32c

        tail = self._index.tobytes()
        return [tail, google_crc32c.value(tail).to_bytes(4, "little")]


def _encode_shard(name: str, values: np.ndarray, layout: Layout) -> bytes:
    encoder, encoded = ShardEncoder(name, layout), []
    for start in range(0, len(values), layout.chunk_stars):
        encoded += encoder.chunk(values[start : start + layout.chunk_stars])
    return b"".join([*encoded, *encoder.end()])


def decoder(name: str, dtype: str, shape: tuple[int, ...], data: bytes, layout: Layout) -> Any:
    """A Zarr array in memory over the bytes of one shard: decodes only the rows that are asked for."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    array = zarr.create_array(MemoryStore(memory), **array_spec(name, dtype, shape, layout))
    if data:
        memory["c/" + "/".join("0" * len(shape))] = default_buffer_prototype().buffer.from_bytes(data)
    return array


def chunk_file(name: str, index: int, ndim: int) -> str:
    """Name of the file of a shard or label chunk below the store."""
    return f"{name}/c/{index}" + "/0" * (ndim - 1)
