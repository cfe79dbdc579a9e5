"""The codes of all items: one packed row an item, a few bytes, instead of its embedding.

Written by the codes step as parts, and in a bundle as one file that is mapped into memory: opening it reads its header,
a row is read where it stands, and all processes of a machine share one copy.

N catalogue  L layers  R bytes a row  B rows asked for
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save

from hymirec.artifacts import write_atomic
from hymirec.catalog.parts import part_paths, read_table, to_numpy
from hymirec.catalog.schemas import CODES, INDEX, LAYOUT
from hymirec.codebook.magnitudes import MagnitudeCodec
from hymirec.codebook.packed import CodeLayout
from hymirec.errors import ArtifactDamagedError

TABLE_FILE = "items.codes"
TENSOR = "rows"


@dataclass(frozen=True, eq=False)
class ItemCodes:
    """Row i belongs to the item with index i: `packed_NR` uint8 (N, R), whose bits `layout` explains."""

    layout: CodeLayout
    packed_NR: NDArray[np.uint8]

    def __post_init__(self) -> None:
        shape, width = self.packed_NR.shape, self.layout.row_bytes
        if self.packed_NR.dtype != np.uint8 or len(shape) != 2 or shape[1] != width:
            raise ValueError(f"expected uint8 rows of {width} bytes, got {self.packed_NR.dtype} of shape {shape}")

    @classmethod
    def of(
        cls,
        codes_NL: NDArray[np.integer[Any]],
        magnitudes_NL: NDArray[np.floating[Any]],
        centroids: int,
        magnitudes: MagnitudeCodec,
    ) -> ItemCodes:
        """Pack codes 0..centroids-1 (N, L) and magnitudes (N, L), which are rounded as `magnitudes` says."""
        layout = CodeLayout(np.shape(codes_NL)[1], centroids, magnitudes)
        return cls(layout, layout.pack(codes_NL, magnitudes_NL))

    @classmethod
    def open(cls, codes_dir: Path) -> ItemCodes:
        """The codes of a directory: the file that `save` wrote, mapped, or else all parts, read.

        Raises ArtifactMissingError when there is neither, and ArtifactDamagedError with the name of the file when items
        are not 0..N-1 in order, or parts are of different layouts or codebooks.
        """
        file = codes_dir / TABLE_FILE
        return _mapped(file) if file.is_file() else _read_parts(codes_dir)

    def save(self, codes_dir: Path) -> None:
        """Write `items.codes`: safetensors with the rows as one tensor and the layout in its metadata.

        Equal tables give equal bytes. Processes that hold the old file keep it.
        """
        # One key: the library writes several in an order that changes from run to run.
        metadata = {"layout": json.dumps(self.layout.as_dict(), sort_keys=True)}
        write_atomic(codes_dir / TABLE_FILE, save({TENSOR: np.ascontiguousarray(self.packed_NR)}, metadata))

    def __len__(self) -> int:
        return len(self.packed_NR)

    @property
    def layers(self) -> int:
        """Number of codes an item (L)."""
        return self.layout.layers

    @property
    def bytes_per_item(self) -> int:
        """Bytes of one row as it is stored, mapped and held in memory."""
        return self.layout.row_bytes

    def rows(self, index_B: NDArray[np.integer[Any]]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Codes uint16 (B, L) and magnitudes fp32 (B, L) of some items. Raises IndexError for an unknown one."""
        return self.layout.unpack(self.packed_NR, index_B)

    def take(self, rows: NDArray[np.integer[Any]]) -> ItemCodes:
        """Some of the rows, in the order asked for."""
        return ItemCodes(self.layout, self.packed_NR[rows])

    def followed_by(self, more: ItemCodes) -> ItemCodes:
        """These rows and then those of other items. Raises ValueError for codes of another layout."""
        if more.layout.as_dict() != self.layout.as_dict():
            raise ValueError("expected codes of one layout; code the items with the codebook of the others")
        return ItemCodes(self.layout, np.concatenate([self.packed_NR, more.packed_NR]))

    @property
    def codes_NL(self) -> NDArray[np.uint16]:  # noqa: N802
        """All codes (N, L), unpacked anew: for reports and tests, not for batches."""
        return self.layout.unpack(self.packed_NR)[0]

    @property
    def magnitudes_NL(self) -> NDArray[np.float32]:  # noqa: N802
        """All magnitudes (N, L), unpacked anew."""
        return self.layout.unpack(self.packed_NR)[1]


def _read_parts(codes_dir: Path) -> ItemCodes:
    again = f"delete {codes_dir} and run the codes step again"
    blocks: list[NDArray[np.uint8]] = []
    layout, first, position = None, {}, 0
    for path in part_paths(codes_dir):
        table = read_table(path)
        try:
            own = json.loads((table.schema.metadata or {})[LAYOUT])
            index = to_numpy(table[INDEX])
            if layout is None:
                layout, first = CodeLayout.from_dict(own), own
            packed = _bytes(table[CODES], layout.row_bytes) if own == first else None
        except (KeyError, TypeError, ValueError, pa.ArrowInvalid) as e:
            raise ArtifactDamagedError(f"{path} holds no codes ({e}); {again}") from e
        if packed is None:
            raise ArtifactDamagedError(
                f"{path}: expected the layout of the first part, {_short(first)}, got {_short(own)}; {again}"
            )
        if not np.array_equal(index, np.arange(position, position + len(index))) or len(packed) != len(index):
            raise ArtifactDamagedError(f"{path}: expected items {position}..{position + len(index)} in order; {again}")
        blocks.append(packed)
        position += len(index)
    assert layout is not None
    return ItemCodes(layout, np.concatenate(blocks))


def _bytes(column: pa.ChunkedArray, width: int) -> NDArray[np.uint8]:
    """A column of fixed-size binary as a matrix (n, width)."""
    if not pa.types.is_fixed_size_binary(column.type) or column.type.byte_width != width or column.null_count:
        raise ValueError(f"expected {width} bytes an item, got {column.type}")
    blocks = [
        np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width).reshape(-1, width)
        for chunk in column.chunks
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, width), np.uint8)


def _short(layout: dict[str, Any]) -> str:
    parts = [f"{layout.get('layers')} x {layout.get('centroids')}", str(layout.get("magnitudes"))]
    return " ".join([*parts, f"levels {layout['levels'][:12]}..."] if "levels" in layout else parts)


def _mapped(path: Path) -> ItemCodes:
    """A safetensors file whose tensor stays in the file. Copy-on-write: torch takes no array that is read-only."""
    size = path.stat().st_size
    try:
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > size:
                raise ValueError("it is cut off")
            header = json.loads(f.read(length))
        layout = CodeLayout.from_dict(json.loads(header["__metadata__"]["layout"]))
        entry = header[TENSOR]
        rows, width = entry["shape"]
        start, stop = entry["data_offsets"]
        sound = (entry["dtype"], width, start, stop) == ("U8", layout.row_bytes, 0, rows * width)
        if not sound or size != 8 + length + stop:
            raise ValueError(f"expected {rows} rows of {layout.row_bytes} bytes")
    except (KeyError, TypeError, ValueError) as e:
        raise ArtifactDamagedError(
            f"{path} holds no codes ({e}); copy it again from where it was made, or write the bundle again"
        ) from e
    if not rows:
        return ItemCodes(layout, np.empty((0, width), np.uint8))
    packed: NDArray[np.uint8] = np.memmap(path, np.uint8, "c", 8 + length, (rows, width)).view(np.ndarray)
    return ItemCodes(layout, packed)
