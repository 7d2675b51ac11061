"""The optimiser."""

import numpy as np

from rustbn.demo.layers import Module


class SGD:
    """Stochastic gradient descent with momentum: v ← µ v + g, p ← p - η v.

    Parameters
    ----------
    network : Module
        Its parameters are updated in place.
    rate : float
        The learning rate η.
    momentum : float
        µ, the part of the last step that goes into the next one.
    """

    def __init__(self, network: Module, rate: float, momentum: float = 0.9) -> None:
        self.network = network
        self.rate = rate
        self.momentum = momentum
        self.velocity = {name: np.zeros_like(p) for name, p in network.named_parameters()}

    def step(self) -> None:
        """Take one step against the gradients."""
        grads = dict(self.network.named_grads())
        for name, parameter in self.network.named_parameters():
            v = self.velocity[name]
            v *= self.momentum
            v += grads[name]
            parameter -= self.rate * v
