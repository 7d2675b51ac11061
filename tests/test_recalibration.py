"""Population statistics of a data set, against NumPy on all values that a module sees."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cases
import numpy as np
import oracle
import pytest
import rustbn
import rustbn.recalibration
import torch
from conftest import RunPython
from groups import Threads, shards
from judge import ULPS, assert_same_bits, assert_within, ulp
from oracle import Array
from rustbn import BatchNorm, recompute_statistics

DATA = cases.problem((37, 5, 4)).x * 100 + 1000
DATA += np.linspace(0, 500, 37, dtype=np.float32)[:, None, None]  # batches differ


def cut(values: Array, *edges: int) -> list[Array]:
    return [values[a:b] for a, b in pairwise((0, *edges, len(values)))]


def check(bn: BatchNorm, seen: Array, biased: bool = False) -> None:
    """Assert that running statistics are those of all values, rounded once to float32."""
    ulps = ULPS if bn.dtype == np.float64 else 1
    count, mean, m2 = oracle.moments(seen, bn.axis, np.longdouble)
    for name, found, exact in (
        ("mean", bn.running_mean, mean),
        ("var", bn.running_var, m2 / (count - (not biased))),
    ):
        assert found is not None
        assert_within(found, exact, ulps * ulp(exact, found.dtype), name)


@pytest.mark.parametrize("edges", [(), (1, 36), (10, 20, 30), (5, 5, 7), tuple(range(1, 37))])
@pytest.mark.parametrize("convention", ["torch", "keras", "flax", "onnx"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_those_of_all_data(
    edges: tuple[int, ...], convention: str, momentum: float | None
) -> None:
    bn = BatchNorm(5, convention=convention, momentum=momentum)
    bn(DATA * np.float32(np.pi))
    batches = cut(DATA, *edges)
    recompute_statistics([bn], iter(batches), bn)
    check(bn, DATA, biased=convention != "torch")
    assert bn.num_batches_tracked == len(batches)


def test_every_module_of_a_network() -> None:
    """The second module sees what the first makes of each batch."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 3)).astype(np.float32)
    first, second = BatchNorm(5, activation="relu"), BatchNorm(3, dtype=np.float64)
    seen: list[Array] = []

    def forward(batch: Array) -> Array:
        hidden = first(batch) @ mix
        seen.append(hidden)
        return second(hidden)

    x = DATA[:, :, 0]
    recompute_statistics({"first": first, "second": second}, cut(x, 10, 35), forward)
    check(first, x)
    check(second, np.concatenate(seen))
    assert len(seen) == 3


def test_closer_than_an_average_of_averages() -> None:
    """What PyTorch's update_bn makes of the same batches is not what the data has."""
    theirs: Any = torch.nn.BatchNorm1d(5)
    batches = cut(DATA, 10, 20, 30)
    torch.optim.swa_utils.update_bn([torch.from_numpy(b) for b in batches], theirs)
    ours = BatchNorm(5)
    recompute_statistics([ours], batches, ours)
    _, _, m2 = oracle.moments(DATA)
    exact = m2 / (DATA.size / 5 - 1)
    assert ours.running_var is not None
    error = abs(ours.running_var - exact) / exact
    assert error.max() < 1e-6
    assert (abs(theirs.running_var.numpy() - exact) / exact).min() > 0.1


def test_all_else_is_as_before() -> None:
    bn, frozen = BatchNorm(5), BatchNorm(5).freeze()
    other = BatchNorm(5).eval()
    p = cases.problem((6, 5, 4))
    bn(p.x)
    dx = bn.backward(p.dy)
    kept = frozen.state_dict()
    running_mean = bn.running_mean
    recompute_statistics([bn, other, bn, frozen], [DATA], lambda x: frozen(other(bn(x))))
    assert (bn.training, other.training, frozen.training, frozen.frozen) == (
        True,
        False,
        True,
        True,
    )
    assert_same_bits(bn.backward(p.dy), dx)
    with pytest.raises(RuntimeError, match="backward needs"):
        other.backward(p.dy)
    for name, value in frozen.state_dict().items():
        assert_same_bits(value, kept[name])
    assert bn.running_mean is running_mean


def test_statistics_that_are_replaced_are_nothing_to_renormalise_toward() -> None:
    """A module that renormalises, and has never been trained, still normalises with the batch."""
    first, second = BatchNorm(5, renorm=(3.0, 5.0)), BatchNorm(5)
    recompute_statistics([first, second], [DATA], lambda x: second(first(x)))
    check(first, DATA)
    check(second, BatchNorm(5)(DATA))
    assert first.renorm == (3.0, 5.0)


def snapshot(*modules: BatchNorm) -> list[Any]:
    return [
        ({k: v.tobytes() for k, v in bn.state_dict().items()}, bn.training, bn._context)
        for bn in modules
    ]


def test_after_an_exception_everything_is_as_before() -> None:
    first, second = BatchNorm(5).eval(), BatchNorm(5)
    second(DATA)
    before = snapshot(first, second)

    def data() -> Iterator[Array]:
        yield DATA
        raise OSError("the disk is gone")

    for batches, forward, error in (
        (data(), lambda x: second(first(x)), OSError),
        ([DATA], lambda x: second(first(x).astype(int)), TypeError),
        ([DATA], first, ValueError),  # second sees nothing
        ([], first, ValueError),
        ([DATA[:1, :, :1]], lambda x: (first(DATA), second(x)), ValueError),
        ([DATA], lambda x: second.eval()(first(x)), ValueError),
        (3, first, TypeError),
    ):
        with pytest.raises(error):
            recompute_statistics([first, second], batches, forward)  # type: ignore[arg-type]
        assert snapshot(first, second) == before
    second(DATA)  # counts as always
    assert second.num_batches_tracked == 2


@pytest.mark.parametrize(
    ("modules", "error", "match"),
    [
        (BatchNorm(5), TypeError, "modules must be an iterable or a mapping of batch norms"),
        (3, TypeError, "modules must be an iterable or a mapping of batch norms, got int"),
        ([BatchNorm(5), "bn"], TypeError, r"modules\[1\] must be a batch norm, got str"),
        ({"bn": 1.0}, TypeError, r"modules\['bn'\] must be a batch norm, got float"),
        ([], ValueError, "modules must have at least one batch norm"),
        ([BatchNorm(5, track_running_stats=False)], RuntimeError, "needs running statistics"),
    ],
    ids=str,
)
def test_what_is_no_module_is_refused_before_the_first_batch(
    modules: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        recompute_statistics(modules, [DATA], lambda x: pytest.fail("called"))


def test_what_cannot_be_called_is_refused_before_the_first_batch() -> None:
    def batches() -> Iterator[Array]:
        pytest.fail("asked for a batch")
        yield DATA

    bn: Any = BatchNorm(5)
    with pytest.raises(TypeError, match="forward must be callable, got int"):
        recompute_statistics([bn], batches(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="progress must be a bool or callable, got str"):
        recompute_statistics([bn], batches(), bn, progress="bar")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^batches must be iterable, got int$"):
        recompute_statistics([bn], 5, bn)  # type: ignore[arg-type]


def test_batches_may_be_of_what_has_no_more_than_items() -> None:
    class DataSet:
        def __getitem__(self, index: int) -> Array:
            return cut(DATA, 10, 20)[index]

    bn, batches = BatchNorm(5), DataSet()
    recompute_statistics([bn], batches, bn)  # type: ignore[arg-type]
    check(bn, DATA)


def test_a_module_that_sees_too_little_is_named() -> None:
    text = (
        r"batches must give modules\['bn1'\] at least 2 values per channel in training mode, got 0"
    )
    with pytest.raises(ValueError, match=text):
        recompute_statistics({"bn1": BatchNorm(5)}, [DATA], lambda x: None)


@pytest.mark.parametrize("policy", ["propagate", "raise", "skip"])
def test_statistics_that_are_not_finite(policy: str) -> None:
    x = DATA.copy()
    x[30, 2, 1] = np.nan
    bn = BatchNorm(5, on_nonfinite=policy)
    before = bn.state_dict()
    if policy == "raise":
        with pytest.raises(FloatingPointError, match=r"channels \[2\]"):
            recompute_statistics([bn], cut(x, 10), bn)
        assert bn.running_var is not None
        assert bn.running_var.tolist() == before["running_var"].tolist()
        return
    recompute_statistics([bn], cut(x, 10), bn)
    assert bn.running_mean is not None
    assert np.isnan(bn.running_mean).tolist() == [
        c == 2 and policy == "propagate" for c in range(5)
    ]
    if policy == "skip":
        assert bn.running_mean[2] == 0
    assert bn.running_mean[0] > 900


def test_only_what_counts_is_seen() -> None:
    lengths = np.arange(37) % 5  # up to 4, and 0 for some
    here = np.arange(4) < lengths[:, None]
    x = DATA.copy()
    x.transpose(0, 2, 1)[~here] = np.nan
    bn = BatchNorm(5)
    batches = zip(cut(x, 10, 20), cut(lengths, 10, 20), strict=True)
    recompute_statistics([bn], batches, lambda batch: bn(batch[0], lengths=batch[1]))
    check(bn, x.transpose(0, 2, 1)[here])
    assert bn.num_batches_tracked == 3


def test_of_a_group() -> None:
    group = Threads(3)
    parts = shards(DATA, (20, 0, 17))

    def rank(r: int) -> rustbn.SyncBatchNorm:
        bn = rustbn.SyncBatchNorm(5, group=group)
        recompute_statistics([bn], [parts[r][:5], parts[r][5:]], bn)
        return bn

    for bn in group.run(rank):
        check(bn, DATA)
        assert bn.num_batches_tracked == 2


# Progress


def test_progress_is_told_to_a_callable() -> None:
    told: list[tuple[int, int | None]] = []
    bn = BatchNorm(5)
    recompute_statistics([bn], cut(DATA, 10, 20), bn, progress=lambda *args: told.append(args))
    recompute_statistics([bn], iter(cut(DATA, 10)), bn, progress=lambda *args: told.append(args))
    assert told == [(1, 3), (2, 3), (3, 3), (1, None), (2, None)]


def test_a_data_loader_may_not_know_its_length() -> None:
    class Stream(torch.utils.data.IterableDataset[Array]):
        def __iter__(self) -> Iterator[Array]:
            yield from cut(DATA, 10)

    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    told: list[tuple[int, int | None]] = []
    bn = BatchNorm(5)
    recompute_statistics([bn], loader, bn, progress=lambda *args: told.append(args))
    assert told == [(1, None), (2, None)]
    check(bn, DATA)


def test_nothing_is_printed_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    bn = BatchNorm(5)
    recompute_statistics([bn], cut(DATA, 10), bn)
    assert capsys.readouterr() == ("", "")
    recompute_statistics([bn], cut(DATA, 10), bn, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.split("\r")
    assert lines[1].startswith("recompute_statistics: 1 of 2 batches, ")
    assert lines[-1].startswith("recompute_statistics: 2 of 2 batches, ")
    assert lines[-1].endswith(" s\n")
    recompute_statistics([bn], iter(cut(DATA, 10)), bn, progress=True)
    assert "recompute_statistics: 2 batches, " in capsys.readouterr().err
    with pytest.raises(ValueError, match="batches"):
        recompute_statistics([bn], [], bn, progress=True)
    assert capsys.readouterr().err == ""


def test_examples() -> None:
    results = doctest.testmod(rustbn.recalibration)
    assert results.attempted > 0
    assert results.failed == 0


# Out of core

MAPPED = """
import resource
import numpy as np
import rustbn

rows = 2**20
x = np.memmap("x.f32", np.float32, "w+", shape=(rows, 128))  # 512 MiB of zeros, but for
x[::4096] = 4096.0
before = rustbn.moments(np.ones((1000, 128), np.float32))  # threads and tables exist now
with open("/proc/self/status") as status:
    held = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, ((held + 32 * 1024) * 1024, resource.RLIM_INFINITY))
try:
    np.ones(2**23)  # 64 MiB is more than there is
except MemoryError:
    pass
else:
    raise AssertionError("the limit is none")

whole = rustbn.moments(x)
assert whole.count == rows
assert (whole.mean == 1.0).all()
assert np.allclose(whole.var(), 4095.0, rtol=1e-12)
rustbn.Affine.from_moments(whole)(x, out=x)
assert abs(x[0] - 4095 / np.sqrt(4095)).max() < 1e-4
assert abs(x[1] + 1 / np.sqrt(4095)).max() < 1e-6
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on data")
def test_a_file_larger_than_memory_is_one_array(
    run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(MAPPED)
