"""Keras on CIFAR-10 with the whole set in memory: the network and settings of recipe d4, `model.fit`.

The folders are read once with `image_dataset_from_directory`. The backend is Keras' own choice.
"""

from __future__ import annotations

import argparse
import json

import keras
import numpy as np
from keras import layers


def read(folder):
    """All images of a folder as (n, 32, 32, 3) of -1 to 1, and labels."""
    batches = keras.utils.image_dataset_from_directory(folder, image_size=(32, 32), batch_size=1000, shuffle=False)
    images, labels = zip(*((np.asarray(x), np.asarray(y)) for x, y in batches), strict=True)
    return np.concatenate(images) / 127.5 - 1, np.concatenate(labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder with train and test, each with a folder per class")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    x, y = read(f"{args.data}/train")
    order = np.random.default_rng(0).permutation(len(x))
    valid, train = order[: len(x) // 5], order[len(x) // 5 :]
    x_test, y_test = read(f"{args.data}/test")
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for maps in (16, 32, 64):
        model.add(layers.Conv2D(maps, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.25))
    model.add(layers.DenseStore(500, activation="relu"))
    model.add(layers.Dropout(0.25))
    model.add(layers.DenseStore(10))
    model.compile(
        optimizer=keras.optimizers.SGD(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        x[train],
        y[train],
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(x[valid], y[valid]),
        callbacks=[keras.callbacks.ModelCheckpoint("cifar.weights.h5", save_best_only=True, save_weights_only=True)],
        verbose=2,
    )
    model.load_weights("cifar.weights.h5")
    _, accuracy = model.evaluate(x_test, y_test, batch_size=args.batch_size, verbose=2)
    print(json.dumps({"accuracy": float(accuracy), "backend": keras.backend.backend()}))


if __name__ == "__main__":
    main()
