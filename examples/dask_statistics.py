"""Normalise an array that is larger than memory, on Dask: map moments, reduce by merging.

    python examples/dask_statistics.py

Needs ``pip install 'rustbn[dask]'``. Takes a second. Any scheduler of Dask's will do; moments are
small and can be pickled, so they travel well between machines.
"""

import dask
import dask.array as da
import numpy as np
import rustbn


def statistics(x: da.Array) -> rustbn.Moments:
    """Return the moments of the channels, axis 1, of an array in chunks of all channels."""
    parts = [dask.delayed(rustbn.moments)(block) for block in x.to_delayed().ravel()]
    while len(parts) > 1:  # a tree, so that merging is parallel too
        parts = [
            dask.delayed(rustbn.Moments.merge)(*pair) if len(pair) == 2 else pair[0]
            for pair in (parts[i : i + 2] for i in range(0, len(parts), 2))
        ]
    (whole,) = dask.compute(parts[0])
    assert isinstance(whole, rustbn.Moments)
    return whole


def main() -> None:
    """Normalise random images, and print how well it went."""
    rng = da.random.default_rng(0)
    x = rng.normal(100.0, 3.0, (2000, 8, 32, 32), chunks=(100, 8, 32, 32)).astype(np.float32)
    moments = statistics(x)
    y = x.map_blocks(rustbn.Affine.from_moments(moments), dtype=x.dtype)
    mean, std = dask.compute(
        y.mean(axis=(0, 2, 3), dtype=np.float64), y.std(axis=(0, 2, 3), dtype=np.float64)
    )
    print(f"{x.npartitions} chunks, {moments.count} values a channel")
    print(f"largest |mean| {abs(mean).max():.1e}, largest |std - 1| {abs(std - 1).max():.1e}")


if __name__ == "__main__":
    main()
