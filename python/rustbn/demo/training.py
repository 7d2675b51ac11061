"""The training loop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

import rustbn
from rustbn.demo.data import Images
from rustbn.demo.layers import Array
from rustbn.demo.loss import softmax_cross_entropy
from rustbn.demo.optim import SGD
from rustbn.demo.sequential import Sequential


@dataclass(frozen=True)
class Curve:
    """Accuracy on held-out images after some of the steps of a training.

    Attributes
    ----------
    steps, accuracy : array, shape (measurements,)
    step_seconds : float
        Processor time of a step, the mean of all; what measuring accuracy takes is not counted.
    """

    steps: Array
    accuracy: Array
    step_seconds: float = np.nan

    @property
    def final(self) -> float:
        """The accuracy after the last step."""
        return float(self.accuracy[-1])

    def steps_to(self, accuracy: float) -> float:
        """Return the first measured step with this accuracy, infinity if there is none."""
        reached = self.steps[self.accuracy >= accuracy]
        return float(reached[0]) if len(reached) else np.inf


def train(
    network: Sequential,
    images: Images,
    held_out: Images,
    *,
    rate: float,
    steps: int,
    rng: np.random.Generator,
    batch: int = 64,
    every: int | None = None,
    until: float = np.inf,
    after_step: Callable[[int], object] = lambda step: None,
) -> Curve:
    """Train the network by SGD with momentum, and follow its accuracy on held-out images.

    Parameters
    ----------
    network : Sequential
        Trained in place, and left in training mode.
    images, held_out : Images
        To train on, and to measure the accuracy on.
    rate : float
        The learning rate, the same throughout.
    steps, batch : int
        The number of steps, and the images a step.
    rng : numpy.random.Generator
        Draws the order of the images. Networks trained from the same state see the same batches.
    every : int, optional
        The steps between two measurements. The last step is always measured.
    until : float
        The accuracy at which to stop, where it is measured.
    after_step : callable
        Called with the number of each step, from 1, once it is taken.
    """
    optimiser = SGD(network, rate)
    measured: list[tuple[int, float]] = []
    seconds = 0.0
    # A network that diverges is a result here, not an error.
    with np.errstate(all="ignore"):
        for step, part in zip(range(1, steps + 1), batches(images, batch, rng), strict=False):
            network.train()
            start = time.process_time()
            backpropagate(network, part)
            optimiser.step()
            seconds += time.process_time() - start
            after_step(step)
            if step == steps or (every and step % every == 0):
                measured.append((step, accuracy(network, held_out)))
                if measured[-1][1] >= until:
                    break
    network.train()
    number, correct = (np.array(column) for column in zip(*measured, strict=True))
    return Curve(number, correct, seconds / step)


def backpropagate(network: Sequential, images: Images) -> float:
    """Compute the gradients of the loss in all parameters, and return the loss."""
    network.zero_grad()
    loss, dlogits = softmax_cross_entropy(network(images.x), images.labels)
    network.backward(dlogits)
    return loss


def batches(images: Images, size: int, rng: np.random.Generator) -> Iterator[Images]:
    """Yield batches without end, in a new order for each epoch; what is left of one is dropped."""
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(order) - size + 1, size):
            yield images[order[start : start + size]]


def accuracy(network: Sequential, images: Images) -> float:
    """Return the part of the images that the network, in evaluation, names right."""
    logits = network.eval()(images.x)
    return float(np.mean(logits.argmax(axis=1) == images.labels))


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep matrix products and batch norm on one thread each.

    The arrays are small: a second thread gains little, and costs much when its core is busy. And
    the order of a product's sums, so its rounding, depends on the number of threads; this way a
    training gives the same network on every number of cores. Batch norm needs no such care.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"), rustbn.threads(1):
        yield
