"""Quality report of a codebook: numbers, a page, plots."""

from hymirec.codebook.report.directory import report_directory, sample_report, write_report
from hymirec.codebook.report.measure import quality_report
from hymirec.codebook.report.page import to_markdown

__all__ = ["quality_report", "report_directory", "sample_report", "to_markdown", "write_report"]
