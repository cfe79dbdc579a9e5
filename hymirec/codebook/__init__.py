"""Cosine residual codebook: vector -> a few codes and magnitudes -> vector. And two other kinds to compare it with."""

from hymirec.codebook.encode import code_part, item_codes
from hymirec.codebook.euclidean import EuclideanCodebook
from hymirec.codebook.fit import fit_batches, fit_codebook
from hymirec.codebook.kinds import fit_variant, open_codebook
from hymirec.codebook.quantizer import ItemQuantizer, ItemTable
from hymirec.codebook.raw import RawVectors
from hymirec.codebook.reduce import IdentityReducer, Reducer, TorchDistributedReducer
from hymirec.codebook.refresh import (
    DRIFT_FILE,
    PASSES,
    drift_markdown,
    drift_report,
    refresh_config,
    refresh_directory,
    save_refreshed,
)
from hymirec.codebook.report import quality_report, report_directory, sample_report, to_markdown, write_report
from hymirec.codebook.residual import ResidualCodebook, project_out
from hymirec.codebook.state import FitState, Usage
from hymirec.codebook.table import ItemCodes

__all__ = [
    "DRIFT_FILE",
    "PASSES",
    "EuclideanCodebook",
    "FitState",
    "IdentityReducer",
    "ItemCodes",
    "ItemQuantizer",
    "ItemTable",
    "RawVectors",
    "Reducer",
    "ResidualCodebook",
    "TorchDistributedReducer",
    "Usage",
    "code_part",
    "drift_markdown",
    "drift_report",
    "fit_batches",
    "fit_codebook",
    "fit_variant",
    "item_codes",
    "open_codebook",
    "project_out",
    "quality_report",
    "refresh_config",
    "refresh_directory",
    "report_directory",
    "sample_report",
    "save_refreshed",
    "to_markdown",
    "write_report",
]
