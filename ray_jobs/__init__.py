"""Batch jobs on Ray Data and Ray Train. A job only wires; what it runs lives in `hymirec`."""
