"""What batch norm does, shown and measured on real images.

A small neural network kit in NumPy (`layers`, `convolution`, `network`, `loss`, `optim`,
`training`) in which batch norm comes from rustbn alone, and six experiments with it: what batch
norm does (`normalise`), and the five claims made for it (`stability`, `speed`, `initialisation`,
`regularisation`, `covariate_shift`). Each is a function that returns its numbers, and its docstring
says how they become a verdict::

    from rustbn.demo import draw, stability, verdict

    result = stability(seed=0, depths=(4, 10), seeds=2)
    verdict(result.tests)
    result.accuracy  # an array
    draw(result)  # figures by name

``python -m rustbn demo`` runs them, prints tables (`console`), and writes figures (`figures`) and a
report (`report`). It needs the extra ``rustbn[demo]``, but only once something is run or drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustbn.demo.catalogue import EXPERIMENTS
from rustbn.demo.cli import main
from rustbn.demo.experiments.covariate_shift import CovariateShift, covariate_shift
from rustbn.demo.experiments.initialisation import Initialisation, initialisation
from rustbn.demo.experiments.normalise import Normalise, normalise
from rustbn.demo.experiments.regularisation import Regularisation, regularisation
from rustbn.demo.experiments.speed import Speed, speed
from rustbn.demo.experiments.stability import Stability, stability
from rustbn.demo.results import Result, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CovariateShift",
    "Initialisation",
    "Normalise",
    "Regularisation",
    "Speed",
    "Stability",
    "covariate_shift",
    "draw",
    "initialisation",
    "main",
    "normalise",
    "regularisation",
    "speed",
    "stability",
    "verdict",
]


def draw(result: Result) -> dict[str, Figure]:
    """Return the figures of an experiment's result, by name."""
    name = type(result).__module__.rpartition(".")[2]
    return {name: figure(result) for name, figure in EXPERIMENTS[name].figures.items()}
