"""The long form of the crash tests (`make faults`): prints a table, and ends with 1 when anything diverged.

`PYTHONPATH=.:tests:tests/faults python tests/faults/run_faults.py --help` runs parts of it.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Not above: each process that is killed imports this file first, and must not import Ray and torch with it.
    from long_runs import main

    sys.exit(main(__doc__))
