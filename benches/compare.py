"""Time rustbn against a copy of the same bytes, PyTorch and plain NumPy.

This is ``python -m rustbn bench``, under the name by which the tables of docs/performance.md were
made; its arguments are in ``python benches/compare.py --help``, and its code in `rustbn.bench`.
"""

import sys

from rustbn.bench import main

if __name__ == "__main__":
    sys.exit(main())
