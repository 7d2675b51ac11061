"""Train a convolutional network with batch norm in NumPy, and use it.

    python examples/train_cnn.py

Needs ``pip install 'rustbn[demo]'`` for the images, 5000 digits of MNIST. Takes about ten seconds.
The layers are those of the demonstration, a page a file in ``rustbn/demo``: copy what you need.
"""

import numpy as np
import rustbn
from rustbn.demo.data import load_mnist
from rustbn.demo.layers import Conv2d, Dense, Flatten, MaxPool2d, ReLU
from rustbn.demo.loss import softmax_cross_entropy
from rustbn.demo.optim import SGD
from rustbn.demo.sequential import Sequential
from rustbn.demo.training import accuracy, batches

EPOCHS, BATCH, RATE = 5, 64, 0.1


def main() -> float:
    """Train, print the validation accuracy after each epoch, and return that on the test images."""
    digits = load_mnist()
    rng = np.random.default_rng(0)
    network = Sequential(
        Conv2d(1, 8, rng), rustbn.BatchNorm2d(8), ReLU(), MaxPool2d(),
        Conv2d(8, 16, rng), rustbn.BatchNorm2d(16), ReLU(), MaxPool2d(),
        Flatten(),
        Dense(16 * 7 * 7, 64, rng), rustbn.BatchNorm1d(64), ReLU(),
        Dense(64, 10, rng),
    )  # fmt: skip

    optimiser = SGD(network, RATE)
    stream = batches(digits.train, BATCH, rng)
    steps = len(digits.train) // BATCH
    for epoch in range(EPOCHS):
        network.train()
        losses = []
        for step in range(steps):
            images = next(stream)
            optimiser.rate = RATE * (1 - (epoch + step / steps) / EPOCHS)  # down to 0: it settles
            network.zero_grad()
            loss, dlogits = softmax_cross_entropy(network(images.x), images.labels)
            network.backward(dlogits)
            optimiser.step()
            losses.append(loss)
        right = accuracy(network, digits.validation)
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, accuracy {100 * right:.1f} %")

    # At inference batch norm is a fixed affine map: an image's answer does not depend on others.
    network.eval()
    logits = network(digits.test.x[:1])
    print(f"the first test image is a {digits.test.labels[0]}, and named {logits.argmax()}")
    test = accuracy(network, digits.test)
    print(f"test accuracy {100 * test:.1f} %")
    return test


if __name__ == "__main__":
    main()
