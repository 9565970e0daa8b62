"""Keras on MNIST with the whole set in memory: the network and settings of recipe d0, `model.fit`.

The backend is Keras' own choice (TensorFlow where it is installed); KERAS_BACKEND=torch takes the other one.
"""

from __future__ import annotations

import argparse
import gzip
import json

import keras
import numpy as np
from keras import layers


def read(folder, part):
    """Images as (n, 28, 28, 1) of 0 to 1, and labels; `keras.datasets.mnist` holds the same but would download it."""
    with gzip.open(f"{folder}/MNIST/raw/{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(f"{folder}/MNIST/raw/{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images.astype("float32") / 255, labels.astype("int64")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="the folder in which MNIST/raw lies")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    x_train, y_train = read(args.data, "train")
    x_test, y_test = read(args.data, "t10k")
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(10, 5),
            layers.MaxPooling2D(2),
            layers.ReLU(),
            layers.Conv2D(20, 5),
            layers.MaxPooling2D(2),
            layers.ReLU(),
            layers.Flatten(),
            layers.DenseStore(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        x_train[:55_000],
        y_train[:55_000],
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(x_train[55_000:], y_train[55_000:]),
        verbose=2,
    )
    _, accuracy = model.evaluate(x_test, y_test, batch_size=args.batch_size, verbose=2)
    print(json.dumps({"accuracy": float(accuracy), "backend": keras.backend.backend()}))


if __name__ == "__main__":
    main()
