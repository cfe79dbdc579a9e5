"""Recommendations for everyone at once: histories from wherever they are, answers as Parquet, part by part."""

from hymirec.batch.histories import cut_histories
from hymirec.batch.recommend import BatchOptions, answered, recommend_part
from hymirec.batch.run import PART_USERS, Batch, recommend_all

__all__ = ["PART_USERS", "Batch", "BatchOptions", "answered", "cut_histories", "recommend_all", "recommend_part"]
