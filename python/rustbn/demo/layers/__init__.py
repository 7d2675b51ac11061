"""Layers of a network, in NumPy, a file each.

A layer maps x to y, keeps what its gradient needs, and maps ``dy``, the gradient of the loss in y,
to ``dx``. It adds the gradients of its own parameters into ``weight_grad`` and ``bias_grad``. That
is also how `rustbn.BatchNorm1d` and `rustbn.BatchNorm2d` work, so a network holds them beside the
layers here.
"""

from rustbn.demo.layers.base import Array, Layer, Module
from rustbn.demo.layers.convolution import Conv2d
from rustbn.demo.layers.dense import Dense, Flatten
from rustbn.demo.layers.elementwise import Dropout, ReLU
from rustbn.demo.layers.pooling import MaxPool2d

__all__ = [
    "Array",
    "Conv2d",
    "Dense",
    "Dropout",
    "Flatten",
    "Layer",
    "MaxPool2d",
    "Module",
    "ReLU",
]
