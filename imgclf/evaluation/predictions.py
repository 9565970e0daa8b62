"""What a model says of labeled images, as a value and as a file: figures, reports and comparisons begin with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

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

T = TypeVar("T")

FORMAT = 3
TENSORS = {"logits": "float32", "targets": "int64", "texts": "uint8"}
TEXTS = ("classes", "refs", "contents")
CONTENT = re.compile(r"([0-9a-f]{64})?")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of labeled images, in their order.

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
        if n and not 0 <= self.targets.min() <= self.targets.max() < k:
            raise DataError(
                f"expected targets from 0 to {k - 1}; got some from {self.targets.min()} to {self.targets.max()}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise DataError(f"the temperature is {self.temperature!r}; expected a number above 0")
        if not set(self.seen) <= set(range(n)):
            raise DataError(f"expected the images that were seen as positions below {n}; got {self.seen[:5]}")

    def __len__(self) -> int:
        return len(self.refs)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(n, k), each row summing to 1; `ImgclfError` where a logit is NaN or infinite."""
        return softmax(self.logits.astype(np.float64) / self.temperature)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The index of the likeliest class, (n,); the first one where several are equal."""
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
        """The answers to the images at these positions."""
        refs, contents = (tuple(texts[i] for i in positions) for texts in (self.refs, self.contents))
        rows, seen = np.array(positions, np.int64), set(self.seen)
        again = tuple(place for place, i in enumerate(positions) if i in seen)
        return replace(
            self, logits=self.logits[rows], targets=self.targets[rows], refs=refs, contents=contents, seen=again
        )

    @cached_property
    def evaluation(self) -> Evaluation:
        """How good the answers are, with intervals; the loss is that of the probabilities."""
        new = sorted(set(range(len(self))) - set(self.seen)) if self.seen else []
        unseen = self.take(new).evaluation if new else None
        result = evaluate_logits(self.logits.astype(np.float64) / self.temperature, self.targets, self.classes)
        intervals = evaluation_intervals(self.logits, self.targets, self.temperature)
        calibration = measure_calibration(self.logits, self.targets, self.temperature)
        return replace(result, intervals=intervals, calibration=calibration, seen=len(self.seen), unseen=unseen)


def write_predictions(path: Path, answers: Predictions) -> None:
    """Write answers as a safetensors file with the tensors `logits`, `targets` and `texts`: a JSON object in ASCII with
    `classes`, `refs`, `contents` and `seen`. Its metadata hold a manifest, with `format`, `temperature`, `images` and
    `right`, and the checksum of all of it, as those of a model file do."""
    right = int((answers.predicted == answers.targets).sum())
    manifest = {"format": FORMAT, "temperature": answers.temperature, "images": len(answers), "right": right}
    texts = json.dumps({name: getattr(answers, name) for name in (*TEXTS, "seen")}).encode("ascii")
    tensors = {
        "logits": _raw("F32", np.ascontiguousarray(answers.logits, np.float32)),
        "targets": _raw("I64", np.ascontiguousarray(answers.targets, np.int64)),
        "texts": _raw("U8", np.frombuffer(texts, np.uint8)),
    }
    write_atomic(path, *pack(tensors, json.dumps(manifest)))


def _raw(kind: str, array: NDArray[Any]) -> Raw:
    return Raw(kind, array.shape, array.reshape(-1).view(np.uint8).data)


def read_predictions(path: Path) -> Predictions:
    """The answers in a file; `DataError`, which names it, where it is missing or broken."""
    return _read(path, _parse)


def read_score(path: Path) -> tuple[int, int]:
    """How many answers of a file are right, and how many there are, by its header alone. Raises what `read_predictions`
    raises."""
    return _read(path, _parse_score)


def _read(path: Path, parse: Callable[[BinaryIO], T]) -> T:
    try:
        with open(path, "rb") as stream:
            return parse(stream)
    except FileNotFoundError:
        problem = (
            "is not there: expected the answers to test images, as `imgclf train` and `imgclf evaluate` write them"
        )
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except ImgclfError as error:
        problem = f"holds no answers that can be used: {error}; write it again with `imgclf evaluate`"
    raise DataError(f"{printable(str(path))} {problem}")


def _manifest(header: Header) -> dict[str, Any]:
    manifest = parse_json(header.manifest, "manifest")
    if manifest.get("format") != FORMAT:
        raise DataError(f"its format is {manifest.get('format')!r}; this version reads {FORMAT}")
    return manifest


def _parse_score(stream: BinaryIO) -> tuple[int, int]:
    manifest = _manifest(read_header(stream))
    right, images = manifest.get("right"), manifest.get("images")
    if type(right) is not int or type(images) is not int or not 0 <= right <= images:
        raise DataError(f"{right!r} of {images!r} answers are right")
    return right, images


def _parse(stream: BinaryIO) -> Predictions:
    from safetensors.numpy import load

    header = read_header(stream)
    temperature = _manifest(header).get("temperature")
    if checksum(stream, header) != header.sha256:
        raise DataError("its checksum does not fit its content")
    tensors = read_tensors(stream, load)
    found = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    if found != TENSORS:
        raise DataError(f"expected the tensors {TENSORS}, got {found}")
    texts = parse_json(tensors["texts"].tobytes(), "table of texts")
    if not all(_are_texts(texts.get(name)) for name in TEXTS) or not isinstance(temperature, float):
        raise DataError(f"expected a temperature and the texts {', '.join(TEXTS)}")
    if not all(map(CONTENT.fullmatch, texts["contents"])):
        raise DataError("expected each content as a sha256 in hexadecimal digits, or empty")
    seen = texts.get("seen")
    if not isinstance(seen, list) or not all(type(position) is int for position in seen):
        raise DataError("expected the positions of the images that were seen")
    if not np.isfinite(tensors["logits"]).all():
        raise DataError("a logit is NaN or infinite")
    classes, refs, contents = (tuple(texts[name]) for name in TEXTS)
    return Predictions(tensors["logits"], tensors["targets"], refs, contents, classes, temperature, tuple(seen))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
