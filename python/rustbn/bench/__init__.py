"""Benchmarks: rustbn beside a copy of the same bytes, PyTorch and plain NumPy.

Batch normalization is bound by memory, so what a pass is measured against is its limit: the same
bytes moved and nothing else (`limits`). All contestants of a case share its arrays, are checked
against float64 (`problem`), and are then timed in turns in one loop (`timing`), so that whatever
else the machine does meets all of them alike.

``python -m rustbn bench`` is `main` (`cli`); `run.measure` returns the numbers::

    from rustbn.bench import Plan, cases, measure

    report = measure(Plan(cases(["odd"], ["nchw"]), peers=["torch"], passes=["forward"]))
"""

from rustbn.bench.cli import main
from rustbn.bench.report import Report
from rustbn.bench.run import Plan, measure
from rustbn.bench.shapes import cases

__all__ = ["Plan", "Report", "cases", "main", "measure"]
