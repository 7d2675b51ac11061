"""What batch norm does to the training of a network, shown on real images.

A small neural network kit in NumPy (`layers`, `convolution`, `loss`, `optim`, `training`) in which
batch norm comes from rustbn alone, and experiments with it (`experiments`). Each experiment is a
function that returns its numbers; ``python -m rustbn demo`` runs them, prints tables (`report`)
and saves figures (`figures`)::

    from rustbn.demo import two_rates, two_rates_figure

    result = two_rates(seed=0, seeds=2)
    two_rates_figure(result)

It needs the extra ``rustbn[demo]``, but only once something is run or drawn.
"""

from rustbn.demo.cli import main
from rustbn.demo.experiments.checks import Checks, checks
from rustbn.demo.experiments.two_rates import TwoRates, choose_rates, two_rates
from rustbn.demo.figures import two_rates_figure

__all__ = ["Checks", "TwoRates", "checks", "choose_rates", "main", "two_rates", "two_rates_figure"]
