"""How well scores tell images that are unlike anything in training, on real photos: the table of docs/probabilities.md.

    python tests/benchmarks/unknown.py --data DIR

DIR holds `cifar10` (`train` and `test`, with folders of images), and of other sets, which show what is strange, as many
as are there: `hymenoptera`, `chairs` and `mnist` (with `MNIST/raw`). Ten networks that start from EfficientNet-Lite0
(extra `offline`) each know nine classes of CIFAR-10: 240 images of each train a linear head, 60 validate, 200 test.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from imgclf.core.config import ExperimentConfig
from imgclf.data.audit import Audit, audit
from imgclf.data.dataset import ArrayReader, Sample, Source
from imgclf.data.sources.open import open_source
from imgclf.data.split import Split
from imgclf.estimator.plan import Plan, make_plan
from imgclf.estimator.settings import Request
from imgclf.evaluation.calibration import fit_temperature, measure_calibration
from imgclf.evaluation.inference import predictions_with_features
from imgclf.evaluation.metrics import softmax
from imgclf.evaluation.ood import fit_ood
from imgclf.training.linear_probe import fit_logistic

SHARE = 0.05
TRAINED, VALIDATED, TESTED = 240, 60, 200
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of logits and features


def images_of(source: Source, most: int, split: str | None = None) -> list[Sample]:
    """Up to so many images of each class, the same ones each time."""
    chosen: list[Sample] = []
    for number, name in enumerate(source.classes):
        mine = [s for s in source.samples if s.label == name and split in (None, s.split)]
        chosen += [mine[i] for i in np.random.default_rng([0, number]).permutation(len(mine))[:most]]
    return chosen


def made(name: str, pixels: np.ndarray) -> Source:
    samples = tuple(Sample(f"all/{index}", "strange") for index in range(len(pixels)))
    return Source(name, ("strange",), samples, ArrayReader({"all": pixels}))


def strangers(data: Path) -> list[tuple[Source, list[Sample]]]:
    """Images of other sets, noise, and images of one color."""
    random = np.random.default_rng(0)
    folders = [data / name for name in ("hymenoptera", "chairs") if (data / name).is_dir()]
    sources = [
        audit(open_source(folder, strict=False), strict=False, allow_unreadable=1.0).source for folder in folders
    ]
    if (data / "mnist").is_dir():
        sources.append(open_source("mnist", data_dir=str(data / "mnist")))
    colors = random.integers(0, 256, (200, 1, 1, 3), dtype=np.uint8)
    sources.append(made("noise", random.integers(0, 256, (200, 224, 224, 3), dtype=np.uint8)))
    sources.append(made("flat", np.broadcast_to(colors, (200, 64, 64, 3)).copy()))
    return [(source, images_of(source, 200 // len(source.classes))) for source in sources]


def features_of(plan: Plan, source: Source, samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    if len(source.classes) != plan.spec.classes:  # strange images, whose labels nobody asks for
        names = tuple(str(number) for number in range(plan.spec.classes))
        samples = [replace(sample, label="0") for sample in samples]
        source = replace(source, classes=names, samples=tuple(samples))
    answers, features = predictions_with_features(
        plan.model, replace(plan, audit=Audit(source)).loader(samples, cache="off")
    )
    return features.astype(np.float64), answers.targets


def scores(x: np.ndarray, y: np.ndarray, valid: tuple[np.ndarray, np.ndarray]) -> dict[str, Score]:
    """What is compared; higher is stranger. `valid` are the logits and features of the validation images."""
    classes, (n, d) = y.max() + 1, x.shape
    means = np.stack([x[y == c].mean(0) for c in range(classes)])

    def inverse(residuals: np.ndarray) -> np.ndarray:
        spread = residuals.T @ residuals / n
        return np.linalg.inv(0.9 * spread + 0.1 * np.trace(spread) / d * np.eye(d))

    within, overall = inverse(x - means[y]), inverse(x - x.mean(0))

    def mahalanobis(z: np.ndarray, f: np.ndarray) -> np.ndarray:
        return np.stack([(((f - mean) @ within) * (f - mean)).sum(1) for mean in means]).min(0)

    def relative(z: np.ndarray, f: np.ndarray) -> np.ndarray:
        around = f - x.mean(0)
        return mahalanobis(z, f) - ((around @ overall) * around).sum(1)

    def nearest(z: np.ndarray, f: np.ndarray) -> np.ndarray:
        unit, known = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (f, x))
        return -np.sort(unit @ known.T, axis=1)[:, -5:].mean(1)

    def energy(z: np.ndarray, f: np.ndarray) -> np.ndarray:
        return -np.logaddexp.reduce(z, axis=1)

    def added(one: Score, other: Score, z: np.ndarray, f: np.ndarray) -> np.ndarray:
        return sum((score(z, f) - score(*valid).mean()) / score(*valid).std() for score in (one, other))

    unknown = fit_ood(x.astype(np.float32), *(array.astype(np.float32) for array in valid))
    return {
        "largest probability": lambda z, f: -softmax(z).max(1),
        "largest logit": lambda z, f: -z.max(1),
        "energy": energy,
        "Mahalanobis": mahalanobis,
        "relative Mahalanobis": relative,
        "5 nearest": nearest,
        "relative Mahalanobis + energy": partial(added, relative, energy),
        "5 nearest + energy": partial(added, nearest, energy),
        "imgclf": lambda z, f: unknown.scores(z.astype(np.float32), f.astype(np.float32)),
    }


def leave_out(
    left_out: int, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], odd: dict[str, np.ndarray]
) -> tuple[dict[str, dict[str, float]], list[float]]:
    """For each score the share of test images refused, and the AUROC against each kind of strange image; and accuracy,
    temperature, and the calibration error on test before and after."""
    kept = [c for c in range(10) if c != left_out]
    (x, y), (tx, ty) = ((f[np.isin(t, kept)], np.searchsorted(kept, t[np.isin(t, kept)])) for f, t in (train, test))
    place = np.concatenate([np.arange(count) for count in np.bincount(y)])  # the images come class by class
    fit, held = place < TRAINED, place >= TRAINED
    weights, bias, *_ = fit_logistic(torch.from_numpy(x[fit]).float(), torch.from_numpy(y[fit]), len(kept))
    w, b = weights.double().numpy(), bias.double().numpy()
    valid = (x[held] @ w.T + b, x[held])
    inside = (tx @ w.T + b, tx)
    temperature = fit_temperature(valid[0], y[held])
    found = measure_calibration(inside[0], ty, temperature)
    outside = {"left out": test[0][test[1] == left_out], **odd}
    rows = {}
    for name, score in scores(x[fit], y[fit], valid).items():
        known, calm = score(*inside), np.sort(score(*valid))
        threshold = calm[int(np.ceil((len(calm) + 1) * (1 - SHARE))) - 1]
        strange = {kind: score(f @ w.T + b, f) for kind, f in outside.items()}
        labels = {kind: np.r_[np.zeros(len(known)), np.ones(len(s))] for kind, s in strange.items()}
        rows[name] = {"refused": float((known > threshold).mean())}
        rows[name] |= {kind: float(roc_auc_score(labels[kind], np.r_[known, s])) for kind, s in strange.items()}
    accuracy = float((inside[0].argmax(1) == ty).mean())
    return rows, [accuracy, temperature, found.before.ece, found.after.ece]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--leave-out", default="0,1,2,3,4,5,6,7,8,9", help="the numbers of the classes, one after another"
    )
    parser.add_argument("--features", type=Path, help="a file to keep the features in, for another time")
    options = parser.parse_args()
    cifar = open_source(options.data / "cifar10")
    sources = {"train": (cifar, images_of(cifar, TRAINED + VALIDATED, "train"))}
    sources["test"] = (cifar, images_of(cifar, TESTED, "test"))
    sources |= {source.name: (source, samples) for source, samples in strangers(options.data)}
    if options.features is not None and options.features.exists():
        kept = np.load(options.features)
        found = {name: (kept[f"{name} features"], kept[f"{name} targets"]) for name in sources}
    else:
        train = Split(tuple(replace(sample, split="train") for sample in sources["train"][1]))
        plan = make_plan(Request(ExperimentConfig("efficientnet_lite0")), Audit(cifar), train)
        found = {}
        for name, (source, samples) in sources.items():
            began = time.perf_counter()
            found[name] = features_of(plan, source, samples)
            print(f"{name}: {len(samples)} images, {time.perf_counter() - began:.0f} s", flush=True)
        if options.features is not None:
            kinds = ("features", "targets")
            named = {f"{name} {kind}": pair[i] for name, pair in found.items() for i, kind in enumerate(kinds)}
            np.savez(options.features, **named)
    train, test = found.pop("train"), found.pop("test")
    odd = {name: features for name, (features, _) in found.items()}
    results, heads = [], []
    for number in map(int, options.leave_out.split(",")):
        rows, head = leave_out(number, train, test, odd)
        results.append(rows)
        heads.append(head)
        accuracy, temperature, before, after = head
        figures = (
            f"accuracy {accuracy:.3f}, temperature {temperature:.2f}, calibration error {before:.3f} → {after:.3f}"
        )
        print(f"without {cifar.classes[number]}: {figures}, refused {rows['imgclf']['refused']:.3f}", flush=True)
    kinds = list(results[0]["imgclf"])
    print("| score |", " | ".join(kinds), "|\n|---" + "|---:" * len(kinds) + "|")
    for name in results[0]:
        print(
            f"| {name} |", " | ".join(f"{np.mean([rows[name][kind] for rows in results]):.3f}" for kind in kinds), "|"
        )
    print("mean of accuracy, temperature, calibration error before and after:", np.mean(heads, 0).round(3))


if __name__ == "__main__":
    main()
