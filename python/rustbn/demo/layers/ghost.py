"""Batch norm with the statistics of small groups of the batch ("ghost batches")."""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

import numpy as np

import rustbn
from rustbn.demo.layers.base import Array, Layer


class GhostBatchNorm(Layer):
    """Batch norm of x of shape (N, features), each group of `group` rows by its own statistics.

    A feature of one group is as good as a channel of its own, and a reshape makes it one: in x seen
    as (group, N / group · features), column b · features + c holds feature c of one group, the rows
    b, b + N / group, …. Evaluation uses running averages of the groups' statistics. Hoffer, Hubara
    & Soudry 2017, algorithm 1.
    """

    parameters = ("weight", "bias")

    def __init__(self, features: int, group: int, momentum: float = 0.1) -> None:
        self.group = group
        self.momentum = momentum
        self.weight = np.ones(features, np.float32)
        self.bias = np.zeros(features, np.float32)
        self.weight_grad = np.zeros_like(self.weight)
        self.bias_grad = np.zeros_like(self.bias)
        self.running_mean = np.zeros_like(self.bias)
        self.running_var = np.ones_like(self.weight)

    def __call__(self, x: Array, /) -> Array:
        if not self.training:
            return rustbn.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        groups, rest = divmod(len(x), self.group)
        if rest:
            raise ValueError(f"x: expected a multiple of {self.group} rows, got {len(x)}")
        y, self.context = rustbn.batch_norm_forward(
            x.reshape(self.group, -1),
            weight=np.tile(self.weight, groups),
            bias=np.tile(self.bias, groups),
        )
        moments = self.context.moments
        assert moments is not None  # it normalised with them
        self._follow(self.running_mean, moments.mean)
        self._follow(self.running_var, moments.var(ddof=1))
        return y.reshape(x.shape)

    def backward(self, dy: Array, /) -> Array:
        grads = rustbn.batch_norm_backward(dy.reshape(self.group, -1), self.context)
        assert grads.dx is not None  # all three were asked for
        assert grads.dweight is not None
        assert grads.dbias is not None
        self.weight_grad += grads.dweight.reshape(-1, len(self.weight)).sum(axis=0)
        self.bias_grad += grads.dbias.reshape(-1, len(self.bias)).sum(axis=0)
        return grads.dx.reshape(dy.shape)

    def _follow(self, running: Array, groups: Array) -> None:
        running += self.momentum * (groups.reshape(-1, len(running)).mean(axis=0) - running)
