"""Modules: when the running statistics move, and what they do where they would not be finite."""

from __future__ import annotations

import copy
import pickle
import re
from itertools import product
from typing import Any

import cases
import ml_dtypes
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
import torch
from judge import assert_same_bits
from oracle import Array
from rustbn import BatchNorm

CONVENTIONS = ("torch", "keras", "flax", "onnx")


def moved(bn: BatchNorm) -> dict[str, Array]:
    """Return what a training forward moves."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return {
        "running_mean": bn.running_mean.copy(),
        "running_var": bn.running_var.copy(),
        "num_batches_tracked": np.array(bn.num_batches_tracked),
    }


def assert_equal(a: dict[str, Array], b: dict[str, Array]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert_same_bits(a[name], b[name], name)


# update=False


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("on_nonfinite", ["propagate", "raise", "skip"])
def test_without_update_the_batch_normalises_and_nothing_moves(
    momentum: float | None, convention: str, on_nonfinite: str
) -> None:
    p = cases.problem((6, 4, 5))
    options: dict[str, Any] = {"convention": convention, "on_nonfinite": on_nonfinite}
    bn = BatchNorm(4, momentum=momentum, **options)
    bn(p.x)
    before, twin = moved(bn), copy.deepcopy(bn)
    y = bn(p.x + 1, update=False)
    assert_equal(moved(bn), before)
    assert_same_bits(y, twin(p.x + 1))
    assert_same_bits(bn.backward(p.dy), twin.backward(p.dy))
    assert_same_bits(bn.weight_grad, twin.weight_grad)


def test_update_is_as_if_it_had_not_been_said_elsewhere() -> None:
    x = cases.problem((6, 4)).x
    for bn in (BatchNorm(4, track_running_stats=False), BatchNorm(4).eval(), BatchNorm(4).freeze()):
        assert_same_bits(bn(x, update=False), bn(x))
    bn = BatchNorm(4)
    yes: Any = np.bool_(True)
    assert_same_bits(bn(x, update=yes), BatchNorm(4)(x))
    assert bn.num_batches_tracked == 1


def test_update_must_be_a_bool() -> None:
    bn = BatchNorm(4)
    before = moved(bn)
    for update in (0, None, "no"):
        with pytest.raises(TypeError, match=rf"update must be a bool, got {type(update).__name__}"):
            bn(cases.problem((6, 4)).x, update=update)  # type: ignore[arg-type]
    assert_equal(moved(bn), before)


# on_nonfinite

SPOILS = {
    "nan": np.nan,
    "inf": np.inf,
    "minus inf": -np.inf,
    "variance beyond float32": 1e30,
}


def spoilt(value: float) -> Array:
    """Return a batch whose channels 1 and 3 have this value somewhere."""
    x = cases.problem((6, 4, 5)).x
    x[2, 1, 3] = x[0, 3, 0] = value
    return x


def trained(**options: Any) -> BatchNorm:
    bn = BatchNorm(4, **options)
    bn(cases.problem((6, 4, 5), seed=1).x)
    return bn


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_propagate_is_what_pytorch_does(spoil: str, convention: str) -> None:
    bn, x = trained(convention=convention), spoilt(SPOILS[spoil])
    bn(x)
    assert bn.running_var is not None
    assert np.isfinite(bn.running_var).tolist() == [True, False, True, False]
    if convention == "torch":
        theirs: Any = torch.nn.BatchNorm1d(4)
        for each in (cases.problem((6, 4, 5), seed=1).x, x):
            theirs(torch.from_numpy(each))
        np.testing.assert_array_equal(
            np.isfinite(bn.running_var), np.isfinite(theirs.running_var.numpy())
        )


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("momentum", [0.25, None])
def test_raise_names_the_channels_and_changes_nothing(
    spoil: str, convention: str, momentum: float | None
) -> None:
    bn = trained(convention=convention, momentum=momentum, on_nonfinite="raise")
    p = cases.problem((6, 4, 5))
    bn(p.x)
    before, dx = moved(bn), bn.backward(p.dy)
    text = "running statistics must stay finite, those of channels [1, 3] would not"
    with pytest.raises(FloatingPointError, match=re.escape(text)):
        bn(spoilt(SPOILS[spoil]))
    assert_equal(moved(bn), before)
    assert_same_bits(bn.backward(p.dy), dx)  # still of the forward before


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("momentum", [0.25, None])
def test_skip_leaves_only_these_channels(
    spoil: str, convention: str, momentum: float | None
) -> None:
    options: dict[str, Any] = {"convention": convention, "momentum": momentum}
    bn, plain = trained(on_nonfinite="skip", **options), trained(**options)
    before, x = moved(bn), spoilt(SPOILS[spoil])
    assert_same_bits(bn(x), plain(x))
    after = moved(bn)
    for name in ("running_mean", "running_var"):
        for channel, expected in enumerate((moved(plain), before) * 2):
            assert after[name][channel] == expected[name][channel]
    assert bn.num_batches_tracked == 2


def test_a_batch_that_moves_no_channel_is_not_counted() -> None:
    good, bad = cases.problem((6, 4, 5), seed=1).x, np.full((6, 4, 5), np.nan, np.float32)
    for momentum in (None, 0.25):
        bn, plain = (BatchNorm(4, momentum=momentum, on_nonfinite="skip") for _ in range(2))
        for x in (bad, good, bad, good + 1):
            bn(x)
        for x in (good, good + 1):
            plain(x)
        assert_equal(moved(bn), moved(plain))
        assert bn.num_batches_tracked == 2


def test_the_cumulative_average_goes_without_skipped_batches() -> None:
    batches = [cases.problem((6, 4), seed=seed).x for seed in range(3)]
    bn = BatchNorm(4, momentum=None, on_nonfinite="skip")
    for x in (batches[0], batches[1] * np.nan, batches[1], batches[2]):
        bn(x)
    for found, each in ((bn.running_mean, lambda x: x.mean(0)), (bn.running_var, oracle.unbiased)):
        expected = np.mean([each(x.astype(np.float64)) for x in batches], axis=0)
        assert found is not None
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_statistics_that_overflow_their_dtype(policy: str, dtype: npt.DTypeLike) -> None:
    """A float16 running variance ends at 65504, though x, float32, is far from infinite."""
    x = np.array([[1.0, 300.0], [3.0, -300.0]], np.float32)  # variances 2 and 180000
    bn = BatchNorm(2, dtype=dtype, momentum=0.5, on_nonfinite=policy)
    narrow = dtype is np.float16
    if policy == "raise" and narrow:
        with pytest.raises(FloatingPointError, match=r"channels \[1\]"):
            bn(x)
        return
    bn(x)
    expected = [0.5 + 0.5 * 2, 1.0 if narrow else 0.5 + 0.5 * 180_000]
    assert bn.running_var is not None
    np.testing.assert_allclose(bn.running_var.astype(float), expected, rtol=1e-2)
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_small_statistics_are_as_good_as_others(policy: str) -> None:
    # Variances that are subnormal in float16, or vanish in it.
    x = np.array([[1e-3, 1e-6, 0.0], [-1e-3, -1e-6, 0.0]], np.float32)
    bn = BatchNorm(3, dtype=np.float16, momentum=1.0, on_nonfinite=policy)
    bn(x)
    assert bn.running_var is not None
    expected = oracle.unbiased(x).astype(np.float16)
    assert 0 < expected[0] < np.finfo(np.float16).smallest_normal
    assert bn.running_var.tolist() == expected.tolist()


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_an_empty_batch_and_eval_are_never_refused(policy: str) -> None:
    bn = BatchNorm(4, on_nonfinite=policy)
    bn(np.empty((0, 4), np.float32))
    assert bn.num_batches_tracked == 1
    bad = np.full((2, 4), np.nan, np.float32)
    bn.eval()(bad)
    bn.train().freeze()(bad)
    bn.unfreeze()(bad, update=False)
    BatchNorm(4, track_running_stats=False, on_nonfinite=policy)(bad)


def test_many_channels_are_named_in_short() -> None:
    bn = BatchNorm(15, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"channels \[0, 1, .*, 9\] and 5 more would not"):
        bn(np.full((2, 15), np.inf, np.float32))


@pytest.mark.parametrize("policy", ["ignore", None, 1])
def test_the_policy_must_be_one_of_three(policy: Any) -> None:
    text = f"on_nonfinite must be one of 'propagate', 'raise', 'skip', got {policy!r}"
    with pytest.raises(ValueError, match=re.escape(text)):
        BatchNorm(4, on_nonfinite=policy)


def test_a_policy_set_later_is_one_of_three_as_well() -> None:
    bn: Any = BatchNorm(4, on_nonfinite="skip")
    with pytest.raises(ValueError, match=r"on_nonfinite must be one of .*, got 'foo'"):
        bn.on_nonfinite = "foo"
    assert bn.on_nonfinite == "skip"
    bn.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError, match="must stay finite"):
        bn(spoilt(np.inf))


def test_the_policy_is_part_of_the_module() -> None:
    for bn in (rustbn.BatchNorm2d(4, on_nonfinite="skip"), rustbn.SyncBatchNorm(4)):
        assert ("on_nonfinite='skip'" in repr(bn)) == (bn.on_nonfinite == "skip")
        for twin in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
            assert twin.on_nonfinite == bn.on_nonfinite


# Where the running statistics become other than what the function makes of them

CAREFUL: list[dict[str, Any]] = [
    {"convention": "keras"},
    {"on_nonfinite": "raise"},
    {"on_nonfinite": "skip"},
]
every_careful = pytest.mark.parametrize("options", CAREFUL, ids=str)


@every_careful
@pytest.mark.parametrize("renorm", [None, (2.0, 1.0)])
def test_what_comes_between_is_not_seen(
    options: dict[str, Any],
    renorm: tuple[float, float] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupt between the function and the end of a forward finds the statistics of before."""
    bn = trained(renorm=renorm, **options)
    before, normalise = moved(bn), BatchNorm._normalise

    def interrupted(*arguments: Any) -> Any:
        normalise(*arguments)
        assert_equal(moved(bn), before)
        raise KeyboardInterrupt

    monkeypatch.setattr(BatchNorm, "_normalise", staticmethod(interrupted))
    with pytest.raises(KeyboardInterrupt):
        bn(cases.problem((6, 4, 5)).x)
    assert_equal(moved(bn), before)


@every_careful
@pytest.mark.parametrize("cls", [BatchNorm, rustbn.SyncBatchNorm])
def test_statistics_that_cannot_be_moved_are_refused_first(
    cls: type[BatchNorm], options: dict[str, Any]
) -> None:
    """As in place, where nothing is to be done about them."""
    x, out = cases.problem((6, 4)).x, np.full((6, 4), 7, np.float32)
    read_only = np.ones(4, np.float32)
    read_only.flags.writeable = False
    changes: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"running_mean": [0.0] * 4}, TypeError, "running_mean must be a NumPy array, got list"),
        ({"running_var": read_only}, ValueError, "running_var must be writeable"),
        ({"running_var": np.ones(3)}, ValueError, r"running_var must have shape \(4,\)"),
        ({"running_var": np.ones(4, int)}, TypeError, "running_var must have dtype"),
        ({"running_var": None}, ValueError, "running_var must be given"),
        ({"running_mean": x[2]}, ValueError, "running_mean must share no memory with x"),
        ({"running_mean": out[2]}, ValueError, "out must share no memory with running_mean"),
        ({"running_var": out[2]}, ValueError, "out must share no memory with running_var"),
    ]
    for attributes, error, message in changes:
        for others, given in product(({}, options), (x, torch.from_numpy(x))):
            bn = cls(4, **others)
            for name, value in attributes.items():
                setattr(bn, name, value)
            kept = x.copy()
            with pytest.raises(error, match=f"^{message}"):
                bn(given, out=out)
            assert (out == 7).all()
            assert_same_bits(x, kept)
            assert bn.num_batches_tracked == 0


@every_careful
def test_statistics_of_another_owner_are_moved_in_place(options: dict[str, Any]) -> None:
    x = cases.problem((6, 4)).x
    plain, bn = BatchNorm(4, **options), BatchNorm(4, **options)
    mean, var = torch.zeros(4), np.ones(8, np.float32)
    owned: Any = bn
    owned.running_mean, owned.running_var = mean, var[::2]
    assert_same_bits(bn(x), plain(x))
    assert owned.running_mean is mean
    assert_same_bits(mean.numpy(), plain.running_mean)
    assert_same_bits(var[::2], plain.running_var)
    assert (var[1::2] == 1).all()


def test_renorm_of_a_module_without_statistics() -> None:
    bn = BatchNorm(4, track_running_stats=False)
    bn.renorm = (2.0, 1.0)
    with pytest.raises(ValueError, match=r"^running_mean must be given with renorm, got None"):
        bn(cases.problem((6, 4)).x)
