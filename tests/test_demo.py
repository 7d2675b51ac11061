"""The demonstration: its network kit, its experiments, its command.

The kit is tested with NumPy alone; what needs a package of the extra ``demo`` is skipped without.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rustbn
from conftest import RunPython
from rustbn.demo import cli
from rustbn.demo.convolution import Conv2d, MaxPool2d
from rustbn.demo.data import Digits, Images, load_digits
from rustbn.demo.experiments import checks as checks_module
from rustbn.demo.experiments.checks import Checks, check_gradients, with_exact_statistics
from rustbn.demo.experiments.two_rates import (
    FAILED,
    GRID,
    RATES,
    TARGET,
    Arm,
    TwoRates,
    choose_rates,
    train_arm,
    two_rates,
)
from rustbn.demo.layers import Array, Dense, Flatten, Module, ReLU, Sequential
from rustbn.demo.loss import softmax_cross_entropy
from rustbn.demo.network import small_convnet
from rustbn.demo.optim import SGD
from rustbn.demo.requirements import PACKAGES
from rustbn.demo.training import Curve, accuracy, batches, single_threaded_blas, train

F64 = np.float64


@pytest.fixture(scope="module")
def digits() -> Digits:
    pytest.importorskip("sklearn")
    return load_digits()


@pytest.fixture
def one_thread() -> Iterator[None]:
    pytest.importorskip("threadpoolctl")
    with single_threaded_blas():
        yield


# --- the kit -------------------------------------------------------------------------------------


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


def test_equal_maxima_share_the_gradient() -> None:
    pool = MaxPool2d()
    x = np.array([[[[1.0, 1.0], [0.0, 1.0]]]])
    assert pool(x).item() == 1
    np.testing.assert_allclose(pool.backward(np.array([[[[6.0]]]])), [[[[2.0, 2.0], [0.0, 2.0]]]])


def test_gradients_add_up_until_zeroed(rng: np.random.Generator) -> None:
    network = small_convnet(True, rng)
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
    network = small_convnet(True, rng)
    for mode in (False, True):
        network.train(mode)
        assert all(layer.training is mode for layer in network.layers)  # type: ignore[attr-defined]


def test_networks_differ_by_batch_norm_alone() -> None:
    plain, normalised = (small_convnet(on, np.random.default_rng(7)) for on in (False, True))
    rest = [m for m in normalised.layers if not isinstance(m, rustbn.BatchNorm)]
    assert len(normalised.layers) - len(rest) == 3
    assert [type(layer) for layer in rest] == [type(layer) for layer in plain.layers]
    for ours, theirs in zip(rest, plain.layers, strict=True):
        for (_, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_network_computes_in_float32(rng: np.random.Generator) -> None:
    network = small_convnet(True, rng)
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


# --- data and experiments ------------------------------------------------------------------------


def test_parts_of_the_digits(digits: Digits) -> None:
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1077, 360, 360]
    assert {part.x.dtype for part in parts} == {np.dtype(np.float32)}
    assert digits.train.x.mean() == pytest.approx(0, abs=1e-5)
    assert digits.train.x.std() == pytest.approx(1, abs=1e-5)
    again = load_digits()
    np.testing.assert_array_equal(again.test.x, digits.test.x)
    # No image of one part is in another, and all digits are in each.
    images = [{image.tobytes() for image in part.x} for part in parts]
    assert len(set.union(*images)) == sum(len(part) for part in images)
    assert all(set(part.labels) == set(range(10)) for part in parts)


@pytest.mark.usefixtures("one_thread")
def test_batch_norm_trains_where_the_plain_network_fails(digits: Digits) -> None:
    arms = [
        train_arm(on, RATES[1], [0], 60, digits.train, digits.validation) for on in (False, True)
    ]
    assert arms[0].final.max() < FAILED
    assert arms[1].final.min() > 0.9


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_is_deterministic(digits: Digits, batch_norm: bool) -> None:
    def weights(threads: int) -> dict[str, Array]:
        network = small_convnet(batch_norm, np.random.default_rng(1))
        order = np.random.default_rng(2)
        with rustbn.threads(threads):
            train(network, digits.train, digits.test[:8], rate=0.03, steps=10, rng=order)
        return dict(network.named_parameters())

    first, second = weights(1), weights(3)
    for name, parameter in first.items():
        np.testing.assert_array_equal(parameter, second[name], err_msg=name)


@pytest.mark.usefixtures("one_thread")
def test_evaluation_changes_nothing(digits: Digits, rng: np.random.Generator) -> None:
    network = small_convnet(True, rng)
    network(digits.train.x[:64])
    before = copy.deepcopy(network)
    assert accuracy(network, digits.test) == accuracy(network, digits.test)
    for ours, theirs in zip(network.layers, before.layers, strict=True):
        if isinstance(ours, rustbn.BatchNorm) and isinstance(theirs, rustbn.BatchNorm):
            assert ours.num_batches_tracked == theirs.num_batches_tracked == 1
            np.testing.assert_array_equal(ours.running_mean, theirs.running_mean)
            np.testing.assert_array_equal(ours.running_var, theirs.running_var)


def test_two_rates_measures_all_arms(digits: Digits) -> None:
    steps = []
    result = two_rates(3, seeds=2, steps=7, on_step=lambda: steps.append(1))
    assert result.seeds == (3, 4)
    assert [(a.rate, a.batch_norm) for a in result.arms] == [
        (rate, on) for rate in RATES for on in (False, True)
    ]
    assert len(steps) == 4 * 2 * 7
    for arm in result.arms:
        for curve in arm.curves:
            np.testing.assert_array_equal(curve.steps, [5, 7])
            assert ((curve.accuracy >= 0) & (curve.accuracy <= 1)).all()


def test_rates_are_chosen_by_their_rule(monkeypatch: pytest.MonkeyPatch, digits: Digits) -> None:
    """Of the grid's rates: the best without batch norm, and the lowest that always fails."""
    final = dict(zip(GRID, ([0.6] * 2, [0.7] * 2, [0.9, 0.8], [0.9, 0.9], [0.9, 0.1],
                            [0.1, 0.2], [0.1, 0.1]), strict=True))  # fmt: skip

    def arm(batch_norm: bool, rate: float, *_: Any) -> Arm:
        assert not batch_norm
        return Arm(False, rate, tuple(curve([a]) for a in final[rate]))

    monkeypatch.setattr("rustbn.demo.experiments.two_rates.train_arm", arm)
    assert choose_rates() == (0.03, 0.3) == RATES


def test_checks_pass(digits: Digits) -> None:
    result = checks_module.checks(steps=60)
    assert result.passed
    assert result.gradient_error < 1e-8
    assert result.accuracy > 0.9


def test_checks_find_a_wrong_gradient(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    images = Images(rng.normal(size=(8, 1, 8, 8)), rng.integers(10, size=8))
    assert check_gradients(small_convnet(True, rng, F64), images, rng) < 1e-8
    right = rustbn.BatchNorm2d.backward
    monkeypatch.setattr(rustbn.BatchNorm2d, "backward", lambda self, dy: 1.001 * right(self, dy))
    assert check_gradients(small_convnet(True, rng, F64), images, rng) > 1e-6


def test_checks_find_stale_running_statistics(rng: np.random.Generator) -> None:
    images = Images(rng.normal(1, 2, size=(64, 1, 8, 8)).astype(np.float32), np.zeros(64, int))
    network = small_convnet(True, rng)
    exact, mean_error, std_error = with_exact_statistics(network, images)
    assert mean_error > 0.5
    assert std_error > 0.1
    _, mean_error, std_error = with_exact_statistics(exact, images)
    assert mean_error < 1e-6
    assert std_error < 1e-6
    np.testing.assert_allclose(exact.eval()(images.x), network(images.x), rtol=0.05, atol=0.05)


def curve(accuracies: list[float]) -> Curve:
    return Curve(5 * np.arange(1, len(accuracies) + 1), np.array(accuracies))


def made_up(low: tuple[float, float], high: tuple[float, float]) -> TwoRates:
    """Return a result whose arms jump to these accuracies, batch norm's second and sooner."""
    arms = []
    for rate, pair in zip(RATES, (low, high), strict=True):
        for batch_norm, final in enumerate(pair):
            jump = [0.1, final, final] if batch_norm else [0.1, 0.1, final]
            arms.append(Arm(bool(batch_norm), rate, (curve(jump), curve(jump))))
    return TwoRates((0, 1), 15, tuple(arms))


def test_steps_to_an_accuracy() -> None:
    assert curve([0.5, 0.96, 0.94]).steps_to(TARGET) == 10
    assert curve([0.5, 0.9]).steps_to(TARGET) == np.inf
    assert curve([0.5, 0.96, 0.94]).final == 0.94


@pytest.mark.parametrize(
    ("low", "high", "headline"),
    [
        ((0.96, 0.97), (0.1, 0.97), "takes fewer steps, and trains at a rate too high without it"),
        ((0.96, 0.97), (0.9, 0.97), "takes fewer steps, and trains at the high rate"),
        (
            (0.9, 0.9),
            (0.1, 0.9),
            "takes about as many steps, but does not always train at the high rate",
        ),
        ((0.96, 0.9), (0.1, 0.97), "takes more steps, and trains at a rate too high without it"),
    ],
)
def test_headline_says_what_the_numbers_show(
    low: tuple[float, float], high: tuple[float, float], headline: str
) -> None:
    assert made_up(low, high).headline() == f"Batch norm {headline}"


def test_pairs_are_counted_by_seed() -> None:
    without = (curve([0.96]), curve([0.1, 0.96]), curve([0.1]), curve([0.1]))
    batch_norm = (curve([0.1, 0.96]), curve([0.96]), curve([0.1]), curve([0.96]))
    arms = (Arm(False, 0.1, without), Arm(True, 0.1, batch_norm))
    assert TwoRates((0, 1, 2, 3), 10, arms).pairs(0.1) == (2, 1)


# --- figure, report and command ------------------------------------------------------------------


def passed() -> Checks:
    return Checks(1e-10, 0.05, 0.05, 0.98, 0.98, 360, 360)


def test_each_check_can_fail() -> None:
    assert passed().passed
    for wrong in (
        {"gradient_error": 1e-3},
        {"gradient_error": np.nan},
        {"mean_error": 3.0},
        {"std_error": 3.0},
        {"accuracy": 0.9},
        {"same_alone": 359},
    ):
        assert not dataclasses.replace(passed(), **wrong).passed, wrong


@pytest.mark.parametrize("low", [(0.96, 0.97), (0.96, 0.4), (0.5, 0.4)])
def test_figure_draws_any_result(low: tuple[float, float], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from rustbn.demo.figures import two_rates_figure

    two_rates_figure(made_up(low, (0.1, 0.97))).savefig(tmp_path / "figure.png")


def test_tables_hold_the_numbers() -> None:
    console = pytest.importorskip("rich.console").Console(width=200)
    from rustbn.demo.report import checks_table, two_rates_table

    with console.capture() as captured:
        console.print(two_rates_table(made_up((0.96, 0.97), (0.1, 0.97))))
        console.print(checks_table(dataclasses.replace(passed(), same_alone=359)))
    rows = [
        [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in line.split("│")[1:-1]]
        for line in captured.get().splitlines()
        if "│" in line
    ]
    assert rows[:4] == [
        ["0.03", "without batch norm", "15", "96.0 ± 0.0 %"],
        ["0.03", "with batch norm", "10", "97.0 ± 0.0 %"],
        ["0.3", "without batch norm", "never", "10.0 ± 0.0 %"],
        ["0.3", "with batch norm", "10", "97.0 ± 0.0 %"],
    ]
    assert [row[2] for row in rows[4:] if row[2]] == ["right", "right", "WRONG"]
    assert rows[-1][1] == "same answer for 359 of 360"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES:
        pytest.importorskip(package)
    monkeypatch.setattr(cli, "STEPS", 50)
    monkeypatch.setattr(cli, "QUICK_SEEDS", 1)


@pytest.mark.usefixtures("short")
def test_command_prints_tables_and_writes_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert cli.main(["--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "Batch norm takes" in printed.out
    assert "360 of 360" in printed.out
    assert f"Figure: {out / 'two-rates.png'}" in printed.out
    assert printed.err == ""
    assert (out / "two-rates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("short")
def test_command_fails_when_a_check_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "two_rates", lambda *_, **__: made_up((0.96, 0.97), (0.1, 0.97)))
    monkeypatch.setattr(cli, "checks", lambda *_, **__: dataclasses.replace(passed(), same_alone=0))
    assert cli.main(["--out", str(tmp_path)]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.usefixtures("short")
def test_command_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> TwoRates:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "two_rates", interrupted)
    assert cli.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "rustbn demo: interrupted\n"


@pytest.mark.parametrize(("module", "package"), PACKAGES.items())
def test_command_names_a_missing_package(
    module: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "out"
    assert cli.main(["--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert package in printed.err
    assert "pip install 'rustbn[demo]'" in printed.err
    assert printed.out == ""
    assert not out.exists()


def test_functions_name_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn: pip install 'rustbn\[demo\]'"):
        two_rates()


def test_imports_without_the_extra(run_python: RunPython) -> None:
    modules = [*PACKAGES, "threadpoolctl"]
    run_python(f"import sys; sys.modules.update(dict.fromkeys({modules})); import rustbn.demo")


@pytest.mark.usefixtures("short")
def test_command_refuses_a_file_as_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert cli.main(["--out", str(file)]) == 2
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--seed", "x"], ["--nonsense"]])
def test_command_refuses_wrong_arguments(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err
