"""The images: scikit-learn's digits, 1797 of 8 x 8 pixels."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from rustbn.demo.layers import Array
from rustbn.demo.requirements import require


@dataclass(frozen=True)
class Images:
    """Images of shape (N, 1, 8, 8), float32, and their labels 0-9 of shape (N,)."""

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


def load_digits() -> Digits:
    """Return the digits in 1077 training, 360 validation and 360 test images, always the same.

    The parts are drawn at random. Pixels are shifted and scaled by the mean and the standard
    deviation of the training part.
    """
    require("sklearn")
    import sklearn.datasets

    raw, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    test, validation, train = np.split(order, [360, 720])
    x = (raw - raw[train].mean()) / raw[train].std()
    images = Images(x.reshape(-1, 1, 8, 8).astype(np.float32), labels)
    return Digits(images[train], images[validation], images[test])
