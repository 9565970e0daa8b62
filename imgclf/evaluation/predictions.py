"""The predictions of a model for labeled images, as a value and as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from imgclf.core.errors import DataError, ImgclfError
from imgclf.core.files import write_atomic
from imgclf.core.results import Evaluation
from imgclf.core.tensor_file import Header, Raw, checksum, pack, parse_json, read_header, read_tensors
from imgclf.core.text import printable
from imgclf.evaluation.calibration import measure_calibration
from imgclf.evaluation.intervals import evaluation_intervals
from imgclf.evaluation.metrics import evaluate_logits, softmax

FORMAT = 4
TEXTS = ("classes", "refs", "contents", "seen")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a model for labeled images, in their order.

    `logits` are float32 (n, k), not divided by the temperature; `targets` the true class indices, int64 (n,). `refs`
    and `contents` are n texts: the images' names in their source, and the sha256 (hex) of their content, "" where
    unknown. `classes` are the k names, `temperature` what the probabilities are taken at, `seen` the positions of the
    images that were trained or validated on as well. Raises `DataError` where these do not fit each other.
    """

    logits: NDArray[np.float32]
    targets: NDArray[np.int64]
    refs: tuple[str, ...]
    contents: tuple[str, ...]
    classes: tuple[str, ...]
    temperature: float = 1.0
    seen: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n, k = len(self.refs), len(self.classes)
        if self.logits.shape != (n, k) or self.targets.shape != (n,) or len(self.contents) != n:
            raise DataError(
                f"expected logits ({n}, {k}), {n} targets and {n} contents for {n} images and {k} classes; "
                f"got logits {self.logits.shape}, targets {self.targets.shape} and {len(self.contents)} contents"
            )
        if n and (self.targets.dtype.kind not in "iu" or not 0 <= self.targets.min() <= self.targets.max() < k):
            raise DataError(
                f"expected targets as whole numbers from 0 to {k - 1}; "
                f"got {self.targets.dtype} from {self.targets.min()} to {self.targets.max()}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise DataError(f"the temperature is {self.temperature!r}; expected a number above 0")
        if not set(self.seen) <= set(range(n)):
            raise DataError(f"expected `seen` as positions below {n}; got {self.seen[:5]}")

    def __len__(self) -> int:
        return len(self.refs)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(n, k), each row summing to 1; `ImgclfError` where a logit is NaN or infinite."""
        return softmax(self.logits.astype(np.float64) / self.temperature)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The index of the most probable class, (n,); the first one where several are equal."""
        index: NDArray[np.int64] = self.logits.argmax(axis=1).astype(np.int64)
        return index

    @property
    def digest(self) -> str:
        """The sha256 (hex) of which images these are, by content where it is known, and of their classes' names: the
        same for any model, and in any order."""
        images = zip(self.refs, self.contents, self.targets.tolist(), strict=True)
        lines = sorted(f"{content or ref}\0{self.classes[target]}" for ref, content, target in images)
        return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def take(self, positions: Sequence[int]) -> Predictions:
        """The predictions for the images at these positions."""
        refs, contents = (tuple(texts[i] for i in positions) for texts in (self.refs, self.contents))
        rows, seen = np.array(positions, np.int64), set(self.seen)
        again = tuple(place for place, i in enumerate(positions) if i in seen)
        return replace(
            self, logits=self.logits[rows], targets=self.targets[rows], refs=refs, contents=contents, seen=again
        )

    @cached_property
    def evaluation(self) -> Evaluation:
        """The metrics of these predictions, with intervals; the loss is that of the probabilities."""
        new = sorted(set(range(len(self))) - set(self.seen)) if self.seen else []
        unseen = self.take(new).evaluation if new else None
        result = evaluate_logits(self.logits.astype(np.float64) / self.temperature, self.targets, self.classes)
        intervals = evaluation_intervals(self.logits, self.targets, self.temperature)
        calibration = measure_calibration(self.logits, self.targets, self.temperature)
        return replace(result, intervals=intervals, calibration=calibration, seen=len(self.seen), unseen=unseen)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as a safetensors file with the tensors `logits`, `targets` and `texts`: a JSON object in ASCII
    with `classes`, `refs`, `contents` and `seen`. Its metadata hold a manifest, with `format`, `temperature`, `images`
    and `correct`, and the checksum of all of it, as those of a model file do."""
    images, correct = len(predictions), int((predictions.predicted == predictions.targets).sum())
    manifest = {"format": FORMAT, "temperature": predictions.temperature, "images": images, "correct": correct}
    texts = json.dumps({name: getattr(predictions, name) for name in TEXTS}).encode("ascii")
    tensors = {
        "logits": _raw("F32", np.ascontiguousarray(predictions.logits, np.float32)),
        "targets": _raw("I64", np.ascontiguousarray(predictions.targets, np.int64)),
        "texts": _raw("U8", np.frombuffer(texts, np.uint8)),
    }
    write_atomic(path, *pack(tensors, json.dumps(manifest)))


def _raw(kind: str, array: NDArray[Any]) -> Raw:
    return Raw(kind, array.shape, array.reshape(-1).view(np.uint8).data)


def read_predictions(path: Path) -> Predictions:
    """The predictions in a file.

    Raises:
        DataError: The file is missing or damaged.
    """
    from safetensors.numpy import load

    with _opened(path) as (stream, header, manifest):
        if checksum(stream, header) != header.sha256:
            raise DataError("its checksum does not match its content")
        tensors = read_tensors(stream, load)
        texts = {name: tuple(values) for name, values in parse_json(tensors["texts"].tobytes(), "texts").items()}
        return Predictions(tensors["logits"], tensors["targets"], temperature=manifest["temperature"], **texts)


def read_score(path: Path) -> tuple[int, int]:
    """How many predictions in a file are correct, and how many there are, from its header alone.

    Raises:
        DataError: The file is missing or damaged.
    """
    with _opened(path) as (_, _, manifest):
        return manifest["correct"], manifest["images"]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Header, dict[str, Any]]]:
    """A file of predictions with its header and its manifest; each error names the file."""
    try:
        with open(path, "rb") as stream:
            header = read_header(stream)
            manifest = parse_json(header.manifest, "manifest")
            if manifest.get("format") != FORMAT:
                raise DataError(f"its format is {manifest.get('format')!r}; this version reads {FORMAT}")
            yield stream, header, manifest
            return
    except FileNotFoundError:
        problem = "not found: `imgclf train` and `imgclf evaluate` write it, with the predictions for test images"
    except OSError as error:
        problem = f"can't be read: {error.strerror}"
    except (ImgclfError, KeyError) as error:
        problem = f"can't be used: {error}; write it again with `imgclf evaluate`"
    raise DataError(f"{printable(str(path))} {problem}")
