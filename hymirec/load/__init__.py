"""A load on a running service: real users come back, at a given rate, and every reply is looked at.

traffic.py   who comes when, from a Parquet of interactions
driver.py    asks, posts events, waits until they count; open loop or closed loop
check.py     what a reply must be
report.py    throughput, goodput, percentiles, degraded and shed requests, event-to-visible
"""

from hymirec.load.check import Checked, wrong
from hymirec.load.driver import Load, LoadPlan
from hymirec.load.report import Sample, Samples, report, table
from hymirec.load.traffic import Traffic

__all__ = ["Checked", "Load", "LoadPlan", "Sample", "Samples", "Traffic", "report", "table", "wrong"]
