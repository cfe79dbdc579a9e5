"""Load any data set as the two tables: `load_tables(config, seed)`."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from hymirec.catalog.loaders import movielens, online_retail, parquet, pixelrec, synthetic
from hymirec.catalog.normalise import Tables, normalise
from hymirec.config import DataConfig
from hymirec.errors import DataError

__all__ = ["Tables", "load_tables"]

_FROM_PATH: dict[str, Callable[[str], tuple[pa.Table, pa.Table]]] = {
    "movielens-1m": movielens.load,
    "pixelrec": pixelrec.load,
    "parquet": parquet.load,
}


def load_tables(config: DataConfig, seed: int) -> Tables:
    """Read (or, for synthetic data, generate from `seed`) items and interactions, in plain types, rows in file order.

    Raises DataError when files are missing or cannot be read. What the rows hold is for `validation.check`.
    """
    if config.kind == "synthetic":
        return synthetic.generate(config.synthetic, seed)
    if config.kind == "online-retail":
        return normalise(*online_retail.load())
    if config.path is None:
        raise DataError(f"data.kind={config.kind} needs data.path; add `--set data.path=DIR`")
    return normalise(*_FROM_PATH[config.kind](config.path))
