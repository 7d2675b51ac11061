"""The experiments by name: what runs them, what draws them, and how long they take."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rustbn.demo.experiments import (
    covariate_shift,
    initialisation,
    normalise,
    regularisation,
    speed,
    stability,
)
from rustbn.demo.figures import covariate_shift as draw_covariate_shift
from rustbn.demo.figures import initialisation as draw_initialisation
from rustbn.demo.figures import normalise as draw_normalise
from rustbn.demo.figures import regularisation as draw_regularisation
from rustbn.demo.figures import speed as draw_speed
from rustbn.demo.figures import stability as draw_stability
from rustbn.demo.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Experiment:
    """An experiment and what belongs to it.

    Attributes
    ----------
    run : callable
        Returns a `Result`; takes ``seed`` and ``on_progress``, and what ``quick`` holds.
    quick : mapping
        Its arguments for a quick look.
    figures : mapping
        From the name of a figure to what draws it from the result.
    seconds, quick_seconds : float
        How long it takes, about: how the whole run's progress is shared out.
    """

    run: Callable[..., Result]
    quick: Mapping[str, Any]
    figures: "Mapping[str, Callable[[Any], Figure]]"
    seconds: float
    quick_seconds: float

    @property
    def name(self) -> str:
        """The name, that of the function."""
        return self.run.__name__

    @property
    def title(self) -> str:
        """The name, for people."""
        return self.name.replace("_", " ").capitalize()

    @property
    def sections(self) -> dict[str, str]:
        """Claim, Method and Rule, each a paragraph of plain text, from the docstring."""
        text = re.sub("[`*]", "", inspect.getdoc(self.run) or "")
        found = re.findall(r"^(Claim|Method|Rule)\n((?:    .*\n?|\n)+)", text, re.M)
        return {title: " ".join(paragraph.split()) for title, paragraph in found}

    @property
    def source(self) -> str:
        """The code of the experiment's module."""
        return inspect.getsource(sys.modules[self.run.__module__])


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            normalise.normalise,
            normalise.QUICK,
            {
                "normalise": draw_normalise.channel,
                "normalise-parameters": draw_normalise.parameters,
            },
            seconds=12,
            quick_seconds=5,
        ),
        Experiment(
            stability.stability,
            stability.QUICK,
            {"stability": draw_stability.rates, "stability-gradients": draw_stability.gradients},
            seconds=36,
            quick_seconds=6,
        ),
        Experiment(
            speed.speed,
            speed.QUICK,
            {"speed": draw_speed.steps, "speed-lag": draw_speed.lag},
            seconds=45,
            quick_seconds=5,
        ),
        Experiment(
            initialisation.initialisation,
            initialisation.QUICK,
            {"initialisation": draw_initialisation.heat_map},
            seconds=22,
            quick_seconds=3,
        ),
        Experiment(
            regularisation.regularisation,
            regularisation.QUICK,
            {
                "regularisation": draw_regularisation.gains,
                "regularisation-curves": draw_regularisation.curves,
            },
            seconds=22,
            quick_seconds=4,
        ),
        Experiment(
            covariate_shift.covariate_shift,
            covariate_shift.QUICK,
            {
                "covariate-shift": draw_covariate_shift.shifts,
                "covariate-shift-benefit": draw_covariate_shift.benefit,
            },
            seconds=11,
            quick_seconds=3,
        ),
    )
}
