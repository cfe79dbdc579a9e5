"""MovieLens-1M (Harper and Konstan 2015): the publisher's `::` files, or the same as Parquet.

The data may not be redistributed; fetch it from <https://grouplens.org/datasets/movielens/1m/>.
"""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.csv as pacsv

from hymirec.catalog.loaders import parquet
from hymirec.catalog.loaders.files import SourceFiles
from hymirec.catalog.schemas import ITEM, TITLE, TS, USER
from hymirec.errors import DataError

GENRES = "genres"


def load(path: str) -> tuple[pa.Table, pa.Table]:
    """3,883 movies (item, title, genres) and 1,000,209 ratings (user, item, ts), in the publisher's order.

    Raises DataError when the directory holds neither `movies.dat` + `ratings.dat[.xz|.gz]` nor the two Parquet tables.
    """
    source = SourceFiles.find(path)
    movies = source.with_name("movies.dat")
    ratings = source.with_name("ratings.dat", "ratings.dat.xz", "ratings.dat.gz")
    if source.tables_named("items") and source.tables_named("interactions"):
        items, interactions = parquet.load(path)
        return items.select([c for c in (ITEM, TITLE, GENRES) if c in items.column_names]), interactions
    if movies is None or ratings is None:
        raise DataError(
            f"{path}: expected movies.dat and ratings.dat as published, or items.parquet and interactions.parquet; "
            "get the data set from https://grouplens.org/datasets/movielens/1m/"
        )
    items = _read(source, movies, [ITEM, TITLE, GENRES])
    return items, _read(source, ratings, [USER, ITEM, "rating", TS]).select([USER, ITEM, TS])


def _read(source: SourceFiles, name: str, columns: list[str]) -> pa.Table:
    """A file of `a::b::c` lines in Latin-1; no field holds a tab, so a tab stands in for the two colons."""
    data = source.bytes_of(name).replace(b"::", b"\t")
    try:
        return pacsv.read_csv(
            io.BytesIO(data),
            read_options=pacsv.ReadOptions(column_names=columns, encoding="latin-1"),
            parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pacsv.ConvertOptions(
                column_types={c: pa.string() if c in (TITLE, GENRES) else pa.int64() for c in columns}
            ),
        )
    except pa.ArrowInvalid as e:
        raise DataError(f"{name}: expected lines of {'::'.join(columns)} ({e}); fetch the file again") from e
