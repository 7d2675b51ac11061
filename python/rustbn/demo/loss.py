"""The loss of a classifier."""

import numpy as np

from rustbn.demo.layers import Array


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean of -log p[label], p = softmax(logits), and its gradient in logits.

    Parameters
    ----------
    logits : array, shape (N, classes)
    labels : integer array, shape (N,)

    Returns
    -------
    loss : float
    dlogits : array, shape (N, classes)
        (p - 1[label]) / N.
    """
    rows = np.arange(len(logits))
    # Softmax is the same for shifted logits; with the largest at 0 no exponential overflows.
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    dlogits = np.exp(log_p)
    dlogits[rows, labels] -= 1
    return float(-log_p[rows, labels].mean()), dlogits / len(logits)
