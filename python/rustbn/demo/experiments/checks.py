"""Three checks of batch norm in a real training: gradients, running statistics, evaluation."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import rustbn
from rustbn.demo.data import Images, load_digits
from rustbn.demo.experiments.two_rates import RATES
from rustbn.demo.layers import Array, Sequential
from rustbn.demo.loss import softmax_cross_entropy
from rustbn.demo.network import small_convnet
from rustbn.demo.training import accuracy, single_threaded_blas, train


@dataclass(frozen=True)
class Checks:
    """The numbers of `checks`.

    Attributes
    ----------
    gradient_error : float
        The largest deviation of backward from finite differences, relative to the gradient's norm.
    mean_error, std_error : float
        The largest deviations of running mean and standard deviation from those of the whole
        training part, in its standard deviations.
    accuracy, accuracy_exact : float
        Test accuracy with the running statistics, and with those of the whole training part.
    same_alone : int
        How many test images get the same answer alone as among the others.
    images : int
        The number of test images.
    """

    gradient_error: float
    mean_error: float
    std_error: float
    accuracy: float
    accuracy_exact: float
    same_alone: int
    images: int

    @property
    def gradients_right(self) -> bool:
        """Whether backward is the gradient of forward, up to what finite differences can tell."""
        return self.gradient_error < 1e-6

    @property
    def statistics_right(self) -> bool:
        """Whether running statistics are close to exact ones, and within 1 % as accurate."""
        close = self.mean_error < 0.5 and self.std_error < 0.5
        return close and abs(self.accuracy - self.accuracy_exact) <= 0.01

    @property
    def evaluation_right(self) -> bool:
        """Whether the answer to an image never depends on the images beside it."""
        return self.same_alone == self.images

    @property
    def passed(self) -> bool:
        """Whether all three hold."""
        return self.gradients_right and self.statistics_right and self.evaluation_right


def checks(
    seed: int = 0, *, steps: int = 200, on_step: Callable[[], object] = lambda: None
) -> Checks:
    """Train the network with batch norm and check what batch norm did in it.

    Gradients
        In float64, for each parameter: the slope of the loss along a random direction, by
        ``backward`` and by the central difference.
    Running statistics
        They follow the batches while the weights change. The exact ones are those of the whole
        training part under the final weights. Both must serve evaluation equally well.
    Evaluation
        Each test image alone gets the answer it gets among the others.

    Parameters
    ----------
    seed : int
        Decides weights, batches and directions.
    steps : int
        The steps of the training.
    on_step : callable
        Called after each of them.
    """
    digits = load_digits()
    training, held_out = digits.train, digits.validation
    weights, order, other = np.random.default_rng(seed).spawn(3)
    with single_threaded_blas():
        double = small_convnet(True, other, np.float64)
        gradient_error = check_gradients(double, training[:32], other)

        network = small_convnet(True, weights)
        rate = RATES[0]
        train(network, training, held_out, rate=rate, steps=steps, rng=order, on_step=on_step)
        exact, mean_error, std_error = with_exact_statistics(network, training)

        together = network.eval()(digits.test.x).argmax(axis=1)
        alone = [network(digits.test.x[i : i + 1]).argmax() for i in range(len(digits.test))]
        return Checks(
            gradient_error=gradient_error,
            mean_error=mean_error,
            std_error=std_error,
            accuracy=accuracy(network, digits.test),
            accuracy_exact=accuracy(exact, digits.test),
            same_alone=int(np.sum(together == alone)),
            images=len(digits.test),
        )


def check_gradients(
    network: Sequential, images: Images, rng: np.random.Generator, h: float = 1e-6
) -> float:
    """Return the largest error of a slope of the loss, relative to the norm of its gradient."""
    x = images.x.astype(np.float64)

    def loss() -> tuple[float, Array]:
        return softmax_cross_entropy(network(x), images.labels)

    network.train()
    network.zero_grad()
    network.backward(loss()[1])
    grads = dict(network.named_grads())
    norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))

    errors = []
    for name, parameter in network.named_parameters():
        direction = rng.normal(size=parameter.shape)
        direction /= np.linalg.norm(direction)
        start = parameter.copy()
        parameter[...] = start + h * direction
        above, _ = loss()
        parameter[...] = start - h * direction
        below, _ = loss()
        parameter[...] = start
        slope = (above - below) / (2 * h)
        errors.append(abs(slope - np.sum(grads[name] * direction)))
    return float(np.max(errors) / norm)


def with_exact_statistics(network: Sequential, images: Images) -> tuple[Sequential, float, float]:
    """Return a copy with the statistics of all the images, and how far off the running ones are.

    The errors are the largest |running mean - mean| / std and |running std / std - 1| of a channel.
    """
    exact = copy.deepcopy(network)
    exact.train()
    mean_errors, std_errors = [], []
    x = images.x
    for layer in exact.layers:
        if not isinstance(layer, rustbn.BatchNorm):
            x = layer(x)
            continue
        state = layer.state_dict()
        moments = rustbn.moments(x)
        mean, std = moments.mean, np.sqrt(moments.var(ddof=1))
        mean_errors.append(np.max(np.abs(state["running_mean"] - mean) / std))
        std_errors.append(np.max(np.abs(np.sqrt(state["running_var"]) / std - 1)))
        x = layer(x)  # in training: normalised by the statistics of all the images
        layer.load_state_dict({**state, "running_mean": mean, "running_var": std**2})
    return exact, float(np.max(mean_errors)), float(np.max(std_errors))
