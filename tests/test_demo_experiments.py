"""The experiments of the demonstration: what they measure, their rules, their figures."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rustbn
from rustbn.demo import draw, verdict
from rustbn.demo.catalogue import EXPERIMENTS
from rustbn.demo.data import Digits, Images, load_digits
from rustbn.demo.experiments import covariate_shift as shift
from rustbn.demo.experiments import regularisation as regular
from rustbn.demo.experiments import speed as speed_module
from rustbn.demo.experiments.initialisation import set_once
from rustbn.demo.experiments.normalise import same_alone, snapshot
from rustbn.demo.experiments.stability import WORKS, gradient_norms
from rustbn.demo.layers import Array, Dense, Layer
from rustbn.demo.network import batch_norm, conv_network, dense_network, nothing
from rustbn.demo.requirements import PACKAGES
from rustbn.demo.results import Interval, Result, Test, interval, ratio_interval
from rustbn.demo.sequential import activations
from rustbn.demo.training import accuracy, backpropagate, single_threaded, train

TINY: dict[str, dict[str, Any]] = {
    "normalise": {"seeds": 1, "steps": 20},
    "stability": {"depths": (2, 3), "rates": (0.01, 0.1), "seeds": 2, "steps": 20},
    "speed": {"names": ("3 dense layers",), "rates": (0.03, 0.1), "seeds": 2, "tuning_seeds": 1},
    "initialisation": {"depths": (2, 3), "scales": (0.1, 1.0, 10.0), "seeds": 2, "steps": 10},
    "regularisation": {
        "groups": (64, 4), "dropout": (0.2, 0.5), "seeds": 2, "tuning_seeds": 1, "steps": 100,
    },
    "covariate_shift": {
        "rates": (0.03, 0.1), "depth": 3, "seeds": 2, "tuning_seeds": 1, "steps": 20,
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    for package in PACKAGES:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Return a small run of each experiment."""
    return {name: EXPERIMENTS[name].run(1, **size) for name, size in TINY.items()}


@pytest.fixture
def images(rng: np.random.Generator) -> Images:
    return Images(rng.normal(size=(64, 1, 8, 8)), rng.integers(10, size=64))


# --- what all share ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_says_claim_method_and_rule(name: str) -> None:
    sections = EXPERIMENTS[name].sections
    assert list(sections) == ["Claim", "Method", "Rule"]
    assert all(len(text.split()) > 4 for text in sections.values())
    assert "Supported if all hold, refuted if none does, else mixed." in sections["Rule"]
    assert f"def {name}(" in EXPERIMENTS[name].source


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_returns_tests_findings_and_tables(name: str, results: dict[str, Any]) -> None:
    result: Result = results[name]
    assert verdict(result.tests) in ("supported", "mixed", "refuted")
    assert all(finding.endswith(".") for finding in result.findings)
    for table in result.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_is_drawn(name: str, results: dict[str, Any]) -> None:
    figures = draw(results[name])
    assert list(figures) == list(EXPERIMENTS[name].figures)
    for figure in figures.values():
        figure.draw_without_rendering()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_same_seed_same_numbers(name: str, results: dict[str, Any]) -> None:
    parts: list[float] = []
    with rustbn.threads(3):
        again: Any = EXPERIMENTS[name].run(1, **TINY[name], on_progress=parts.append)
    for field in dataclasses.fields(again):
        if field.name != "step_seconds":
            first, second = (getattr(r, field.name) for r in (results[name], again))
            np.testing.assert_array_equal(first, second, err_msg=field.name)
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "tuned"),
    [
        ("speed", ["rates"]),
        ("regularisation", ["dropout", "validation", "memorised"]),
        ("covariate_shift", ["rates", "drift", "change"]),
    ],
)
def test_the_test_part_has_no_say_in_what_is_tuned(
    name: str, tuned: list[str], results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_digits()
    wrong = Images(digits.test.x, (digits.test.labels + 1) % 10)
    other = Digits(digits.train, digits.validation, wrong)
    module = f"rustbn.demo.experiments.{name}"
    monkeypatch.setattr(f"{module}.load_digits", lambda: other)
    if name == "speed":
        contest = dataclasses.replace(speed_module.CONTESTS[0], load=lambda: other)
        monkeypatch.setattr(f"{module}.CONTESTS", (contest,))
    result: Any = EXPERIMENTS[name].run(1, **TINY[name])
    for field in tuned:
        np.testing.assert_array_equal(getattr(result, field), getattr(results[name], field))
    assert not np.array_equal(_tested(result), _tested(results[name]))


def _tested(result: Any) -> Array:
    """Return what an experiment measured on the test part."""
    for field in ("steps", "test", "accuracy"):
        value = getattr(result, field, None)
        if value is not None and np.ndim(value) == 3:
            return np.asarray(value)
    raise AssertionError(result)


def test_verdict() -> None:
    yes, no = Test("", "", True), Test("", "", False)
    assert verdict([yes, yes]) == "supported"
    assert verdict([yes, no]) == "mixed"
    assert verdict([no, no]) == "refuted"


def test_interval_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.array([1.0, 3.0, 4.0, 8.0])
    low, high = stats.t.interval(0.95, 3, loc=4, scale=stats.sem(values))
    assert dataclasses.astuple(interval(values)) == pytest.approx((4, low, high))
    ratio = ratio_interval(np.exp(values))
    assert dataclasses.astuple(ratio) == pytest.approx((np.exp(4), np.exp(low), np.exp(high)))
    assert interval(values[:1]) == Interval(1, -np.inf, np.inf)


# --- normalise -----------------------------------------------------------------------------------


def test_snapshot_sees_the_layer(rng: np.random.Generator) -> None:
    network = conv_network(batch_norm, rng, size=8)
    norm = [layer for layer in network.layers if isinstance(layer, rustbn.BatchNorm)][1]
    assert norm.weight is not None
    norm.weight[:] = 2
    x = rng.normal(size=(16, 1, 8, 8)).astype(np.float32)
    before = network.layers[4](network.layers[3](network.layers[2](network.layers[1](
        network.layers[0](x)))))  # fmt: skip
    seen = snapshot(network, x)
    axes = (0, 2, 3)
    np.testing.assert_allclose(seen.before[0], before.mean(axis=axes), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen.before[1], before.std(axis=axes), rtol=1e-4)
    np.testing.assert_allclose(seen.after[0], 0, atol=1e-5)
    np.testing.assert_allclose(seen.after[1], 1, rtol=1e-3)
    np.testing.assert_allclose(seen.quantiles[2], 2 * seen.quantiles[1], rtol=1e-4, atol=1e-5)


class Centre(Layer):
    """A layer that normalises by the batch in evaluation too."""

    def __call__(self, x: Array, /) -> Array:
        centred: Array = x - x.mean(axis=0, dtype=x.dtype)
        return centred


def test_same_alone_finds_a_network_that_uses_its_batch(rng: np.random.Generator) -> None:
    x = rng.normal(size=(64, 1, 8, 8)).astype(np.float32)
    assert same_alone(dense_network(2, batch_norm, rng), x) == 1
    assert same_alone(dense_network(2, lambda features: [Centre()], rng), x) < 1


def test_normalise_can_fail(results: dict[str, Any]) -> None:
    result = results["normalise"]
    still = np.ones_like(result.weight), np.zeros_like(result.bias)
    wrong = dataclasses.replace(
        result,
        after=1.1 * result.after,
        weight=still[0],
        bias=still[1],
        same_alone=np.array([0.99]),
    )
    assert [test.holds for test in wrong.tests] == [False] * 3
    right = dataclasses.replace(wrong, after=result.after, weight=still[0] + 0.1, bias=still[1] + 1)
    assert [test.holds for test in right.tests] == [True, True, False]


# --- stability -----------------------------------------------------------------------------------


def test_batch_norm_trains_where_the_plain_network_fails() -> None:
    digits = load_digits()
    final = {}
    with single_threaded():
        for between in (nothing, batch_norm):
            weights, order = np.random.default_rng(0).spawn(2)
            network = dense_network(4, between, weights)
            curve = train(network, digits.train, digits.test, rate=0.3, steps=100, rng=order)
            final[between] = curve.final
    assert final[nothing] < 0.5
    assert final[batch_norm] > 0.9


def test_gradient_norms_follow_the_weights_scale_without_batch_norm_alone(images: Images) -> None:
    """Scaling all hidden weights by a scales an input's gradient by a for each layer above it."""

    def ratios(between: Callable[[int], list[Any]], images: Images) -> Array:
        one, two = (
            gradient_norms(
                dense_network(4, between, np.random.default_rng(3), scale=a, dtype=np.float64),
                images,
            )
            for a in (1.0, 2.0)
        )
        return np.array(two) / one

    # A factor of 2 per layer; the gradient of the logits, where it starts, differs a little too.
    plain = ratios(nothing, images)
    np.testing.assert_allclose(plain[:-1] / plain[1:], 2, rtol=0.1)
    np.testing.assert_allclose(ratios(_batch_norm_without_eps, images), 1, rtol=1e-9)


def _batch_norm_without_eps(features: int) -> list[Any]:
    return [rustbn.BatchNorm(features, eps=1e-30, dtype=np.float64)]


@pytest.mark.parametrize(
    ("without", "with_", "expected"),
    [((1, 1), (2, 2), "supported"), ((1, 1), (2, 1), "mixed"), ((1, 2), (1, 2), "refuted")],
)
def test_stability_counts_rates(
    without: tuple[int, int], with_: tuple[int, int], expected: str, results: dict[str, Any]
) -> None:
    """The pairs say how many of two rates work, at two depths."""
    accuracies = np.full((2, 2, 2, 2), 0.5)
    for arm, depths in enumerate((without, with_)):
        for depth, count in enumerate(depths):
            accuracies[arm, depth, :count] = WORKS
    result = dataclasses.replace(results["stability"], accuracy=accuracies)
    assert verdict(result.tests) == expected
    accuracies[1, :, :, 0] = 0.5  # a single seed that fails
    assert verdict(result.tests) == "refuted"


# --- speed ---------------------------------------------------------------------------------------


def test_speed_counts_the_limit_where_the_target_is_never_reached(results: dict[str, Any]) -> None:
    result = dataclasses.replace(
        results["speed"],
        limits=(300,),
        steps=np.array([[[np.inf, 200.0], [100.0, 100.0]]]),
        step_seconds=np.array([[[1.0, 1.0], [2.0, 2.0]]]),
    )
    assert result.step_ratio[0].mean == pytest.approx(np.sqrt(3 * 2))
    assert result.seconds_ratio[0].mean == pytest.approx(np.sqrt(3 * 2) / 2)
    assert "1 of 2" in result.tables[0].rows[0]


def test_speed_needs_fewer_steps_and_fewer_seconds(results: dict[str, Any]) -> None:
    def judged(without: float, with_: float, cost: float) -> list[bool]:
        steps = np.array([[[without, without + 5], [with_, with_ + 2]]])
        seconds = np.array([[[1.0, 1.0], [cost, cost]]])
        result = dataclasses.replace(results["speed"], steps=steps, step_seconds=seconds)
        return [test.holds for test in result.tests]

    assert judged(200, 80, 1) == [True, True]
    assert judged(200, 80, 4) == [True, False]
    assert judged(80, 80, 1) == [False, False]


def test_speed_refuses_an_unknown_network() -> None:
    with pytest.raises(ValueError, match=r"names: expected some of .*3 dense layers.*got .'x'"):
        EXPERIMENTS["speed"].run(names=("x",))


def test_exact_statistics_are_those_of_all_training_images() -> None:
    contest = speed_module.CONTESTS[0]
    digits = contest.load()
    with single_threaded():
        _, exact = speed_module.follow_lag(contest, (1, 0), 0.1)
        weights, order = np.random.default_rng((1, 0)).spawn(2)
        network = contest.make(batch_norm, weights)
        train(network, digits.train, digits.test, rate=0.1, steps=1, rng=order)
        x, seen = digits.test.x, digits.train.x
        for layer in network.layers:
            if isinstance(layer, rustbn.BatchNorm):
                affine = rustbn.Affine.from_moments(rustbn.moments(seen), layer.weight, layer.bias)
                x, seen = affine(x), affine(seen)
            else:
                seen, x = layer(seen), layer(x)
    assert exact[0] == pytest.approx(np.mean(x.argmax(axis=1) == digits.test.labels), abs=0.003)


# --- initialisation ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_set_once_gives_features_mean_0_and_variance_1(images: Images, scale: float) -> None:
    network = dense_network(12, nothing, np.random.default_rng(1), scale=scale, dtype=np.float64)
    last = next(iter(network.layers[-1].named_parameters()))[1].copy()
    set_once(network, images)
    outputs = activations(network, images.x)
    for layer, output in zip(network.layers[:-1], outputs, strict=False):
        if isinstance(layer, Dense):
            np.testing.assert_allclose(output.mean(axis=0), 0, atol=1e-9)
            np.testing.assert_allclose(output.var(axis=0), 1, rtol=1e-9)
    np.testing.assert_array_equal(next(iter(network.layers[-1].named_parameters()))[1], last)


def test_initialisation_counts_scales(results: dict[str, Any]) -> None:
    accuracies = np.full_like(results["initialisation"].accuracy, 0.95)
    result = dataclasses.replace(results["initialisation"], accuracy=accuracies)
    assert verdict(result.tests) == "refuted"
    accuracies[0, :, :, 0] = 0.5
    assert verdict(result.tests) == "supported"
    accuracies[2, 0, 0, 0] = 0.5
    assert verdict(result.tests) == "mixed"


# --- regularisation ------------------------------------------------------------------------------


def test_a_fifth_of_the_labels_is_wrong(rng: np.random.Generator) -> None:
    images = Images(np.arange(1077.0), rng.integers(10, size=1077))
    some, wrong = regular.with_wrong_labels(images, rng)
    right = images.labels[some.x.astype(int)]
    assert len(set(some.x)) == len(some) == 1024
    assert len(wrong) == 205
    np.testing.assert_array_equal(np.flatnonzero(some.labels != right), np.sort(wrong))
    assert set(some.labels) == set(range(10))


def test_each_group_has_statistics_of_its_own(rng: np.random.Generator) -> None:
    (norm,) = regular.ghost(4)(3)
    groups = norm(rng.normal(5, 2, size=(12, 3)).astype(np.float32)).reshape(3, 4, 3)
    np.testing.assert_allclose(groups.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std(axis=1), 1, atol=1e-3)


def test_regularisation_compares_pairs(results: dict[str, Any]) -> None:
    result = results["regularisation"]
    assert [test.says.split(":")[0] for test in result.tests] == [
        "Statistics of 64 images, the whole batch",
        "Statistics of 4 images",
    ]
    test = np.zeros_like(result.test)
    test[:, -1] = [[0.5, 0.9], [0, 0], [0.49, 0.9], [0.6, 1.0]]
    changed = dataclasses.replace(result, test=test)
    assert changed.gains[2].mean == pytest.approx(0.1)
    assert [test.holds for test in changed.tests] == [False, True]


def test_stopping_early_is_by_validation(results: dict[str, Any]) -> None:
    result = results["regularisation"]
    validation, test = np.zeros((2, 4, 2, 2))
    validation[:, 0, 0] = validation[:, 1, 1] = 1
    test[:, 0], test[:, 1] = 0.7, 0.8
    changed = dataclasses.replace(result, validation=validation, test=test)
    np.testing.assert_array_equal(changed.stopped_early, [[0.7, 0.8]] * 4)


# --- covariate shift -----------------------------------------------------------------------------


def test_noise_scales_and_shifts_features(rng: np.random.Generator) -> None:
    noise = shift.RandomScaleShift(400, rng)
    x = rng.normal(size=(64, 400))
    y = noise(x)
    a, b = np.array([np.polyfit(u, v, 1) for u, v in zip(x.T, y.T, strict=True)]).T
    np.testing.assert_allclose(a * x + b, y, atol=1e-9)
    assert a.min() > 0.5
    assert a.max() < 1.5
    assert abs(a.mean() - 1) < 0.05
    assert abs(b.std() - 0.3) < 0.05
    np.testing.assert_allclose(noise.backward(x), a * x, atol=1e-9)
    assert not np.array_equal(noise(x), y)
    assert noise.eval()(x) is x


@pytest.mark.parametrize("between", [nothing, batch_norm])
def test_gradient_shifts_are_by_the_layers_below(
    images: Images, between: Callable[[int], list[Any]]
) -> None:
    def start() -> Any:
        network = dense_network(4, between, np.random.default_rng(1), dtype=np.float64)
        backpropagate(network, images)
        return network

    old, new = start(), start()
    layers = [i for i, layer in enumerate(old.layers) if isinstance(layer, Dense)][1:-1]
    same = shift.gradient_shifts(start(), new, images, layers)
    np.testing.assert_allclose(same, [(0, 1)] * 3, atol=1e-12)

    for _, parameter in new.named_parameters():
        parameter += 0.02
    shifts = shift.gradient_shifts(start(), new, images, layers)
    for i, (change, cosine) in zip(layers, shifts, strict=True):
        mixed = start()
        mixed.layers = (*copy.deepcopy(new.layers[:i]), *mixed.layers[i:])
        backpropagate(mixed, images)
        was, now = old.layers[i].weight_grad, mixed.layers[i].weight_grad
        assert change == pytest.approx(np.linalg.norm(now - was) / np.linalg.norm(was))
        angle = np.vdot(was, now) / np.linalg.norm(was) / np.linalg.norm(now)
        assert cosine == pytest.approx(angle)
        assert change > 1e-3


def test_drift_is_none_where_nothing_is_learnt() -> None:
    digits = load_digits()
    digits = Digits(digits.train[:128], digits.validation, digits.test)
    for rate, moves in ((0.0, False), (0.03, True)):
        network = dense_network(3, nothing, np.random.default_rng(1))
        accuracies, drift, shifts = shift.train_and_measure(
            network, digits, rate, 10, np.random.default_rng(2), gradients=True
        )
        assert (drift > 0) is moves
        assert len(accuracies) == 2
        assert len(shifts) == 2 * 2
        assert accuracies[-1] == accuracy(network, digits.test)


def test_covariate_shift_needs_evidence(results: dict[str, Any]) -> None:
    result = results["covariate_shift"]
    few = np.array([1.0, 1.1])
    drift = np.stack([few, 0.1 * few, 0.2 * few, 1.2 * few])
    curves = np.zeros((4, 1, 2))
    for arm, mean in enumerate((0.5, 0.6, 0.7, 0.69)):
        curves[arm, 0] = mean + np.array([0, 0.001])
    changed = dataclasses.replace(
        result, drift=drift, change=drift, cosine=drift, accuracy=curves, steps=np.array([5])
    )
    assert [test.holds for test in changed.tests] == [True, True, True, False]
    assert changed.kept == pytest.approx(0.95)
    curves[shift.NOISY, 0] = 0.51 + np.array([0, 0.001])  # hardly any benefit is left
    assert verdict(changed.tests) == "supported"
    other = dataclasses.replace(changed, drift=drift[::-1], change=2 * few + np.zeros((4, 2)))
    assert [test.holds for test in other.tests] == [True, False, False, True]
