"""RocksDB's own logs, looked over before it opens them.

Its write-ahead logs and manifests are 32 KiB blocks of records: (CRC u32, length u16, type u8, data). RocksDB 9.8 never
returns from opening a log in which a record of a recycled file follows one of another kind; it is enough that one bit
of a type is flipped. Our options never recycle a log, so such a record is damage.
"""

from __future__ import annotations

import mmap
import struct
from contextlib import suppress
from pathlib import Path

from hymirec.errors import StoreDamagedError

BLOCK_BYTES = 32_768
RECYCLED_TYPES = frozenset({5, 6, 7, 8, 11})
_HEADER = struct.Struct("<IHB")


def check_logs(directory: Path) -> None:
    """Raise StoreDamagedError naming the file and the byte of a record that RocksDB would not come back from."""
    for path in sorted([*directory.glob("*.log"), *directory.glob("MANIFEST-*")]):
        place = None
        # A writer that has the directory open removes logs.
        with suppress(FileNotFoundError), path.open("rb") as f:
            if path.stat().st_size:
                with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    place = _recycled(data)
        if place is not None:
            raise StoreDamagedError(
                f"{path} is damaged at byte {place}. Restore the directory from a copy, or move it away and restart "
                "the history writer: it is built again from the log"
            )


def _recycled(data: mmap.mmap) -> int | None:
    """Where a record has a type of recycled files."""
    position, size = 0, len(data)
    while position + _HEADER.size <= size:
        block_end = position - position % BLOCK_BYTES + BLOCK_BYTES
        if position + _HEADER.size > block_end:
            position = block_end
            continue
        _, length, kind = _HEADER.unpack_from(data, position)
        if kind in RECYCLED_TYPES:
            return position
        after = position + _HEADER.size + length
        # An empty record of type 0 is the unwritten rest of a block.
        position = block_end if after > block_end or kind == length == 0 else after
    return None
