"""Train a small network on images of digits, and write it to a file with some images.

    python examples/train_digits.py [FILE]

makes ``examples/digits.safetensors``, which ``examples/inference.rs`` runs without Python. Needs
``pip install 'rustbn[demo]' safetensors``. Takes a few seconds.
"""

import sys
from pathlib import Path

import numpy as np
import rustbn
from rustbn.demo.data import load_digits
from rustbn.demo.layers import Array, Dense
from rustbn.demo.loss import softmax_cross_entropy
from rustbn.demo.optim import SGD
from rustbn.demo.sequential import Sequential
from rustbn.demo.training import batches
from safetensors.numpy import save_file

FILE = Path(__file__).with_name("digits.safetensors")
STEPS, BATCH, RATE, WIDTH, SHOWN = 600, 64, 0.1, 16, 16


def train() -> dict[str, Array]:
    """Return the state of a trained network, under the names that PyTorch would give it."""
    rng = np.random.default_rng(0)
    network = Sequential(
        Dense(64, WIDTH, rng), rustbn.BatchNorm1d(WIDTH, activation="relu"),
        Dense(WIDTH, WIDTH, rng), rustbn.BatchNorm1d(WIDTH, activation="relu"),
        Dense(WIDTH, 10, rng),
    )  # fmt: skip
    optimiser = SGD(network, RATE)
    stream = batches(load_digits().train, BATCH, rng)
    for step in range(STEPS):
        images = next(stream)
        optimiser.rate = RATE * (1 - step / STEPS)
        network.zero_grad()
        _, dlogits = softmax_cross_entropy(network(images.x.reshape(-1, 64)), images.labels)
        network.backward(dlogits)
        optimiser.step()

    state: dict[str, Array] = {}
    for prefix, layer in zip(("fc1", "bn1", "fc2", "bn2", "fc3"), network.layers, strict=True):
        if isinstance(layer, rustbn.BatchNorm1d):
            entries = layer.state_dict()
        else:
            entries = dict(layer.named_parameters())
        state |= {f"{prefix}.{name}": np.asarray(entry) for name, entry in entries.items()}
    return state


def main(file: Path = FILE) -> None:
    """Train, let NumPy answer in float64, and write everything to `file`."""
    state = train()
    test = load_digits().test[:SHOWN]
    images = test.x.reshape(-1, 64)

    x = images.astype(np.float64)
    wide = {name: array.astype(np.float64) for name, array in state.items()}
    for fc, bn in (("fc1", "bn1"), ("fc2", "bn2")):
        x = x @ wide[f"{fc}.weight"].T + wide[f"{fc}.bias"]
        x = (x - wide[f"{bn}.running_mean"]) / np.sqrt(wide[f"{bn}.running_var"] + 1e-5)
        x = np.maximum(x * wide[f"{bn}.weight"] + wide[f"{bn}.bias"], 0)
    logits = x @ wide["fc3.weight"].T + wide["fc3.bias"]

    labels = test.labels.astype(np.float32)
    answers = {"images": images, "labels": labels, "logits": logits.astype(np.float32)}
    save_file(state | answers, file)
    right = int((logits.argmax(axis=1) == test.labels).sum())
    print(f"{right} of {SHOWN} digits named right; {file.stat().st_size} bytes in {file}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
