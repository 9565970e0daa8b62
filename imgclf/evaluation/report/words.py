"""The report in plain words, for who has never trained a model: what it is, what it is good for, what to mind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imgclf.evaluation.intervals import wilson_interval
from imgclf.evaluation.report.confusion import Pair
from imgclf.evaluation.report.facts import ReportData
from imgclf.evaluation.report.slices import Slicing
from imgclf.results import ClassResult, Evaluation

NAMED = 5
LONGEST = 60  # characters of a name in a sentence
WIDE = 0.06  # of an interval
FEW_OF_A_CLASS = 10
OFF = 0.05  # between confidence and accuracy
GAP = 0.1  # between train and valid
MANY_BAD = 0.01


def percent(share: float, digits: int = 1) -> str:
    """0.98123 as `98.1 %`, which is never broken."""
    return f"{100 * share:.{digits}f}\u202f%"


def plural(count: int, noun: str) -> str:
    """`1 image`, `1,797 images`, `2 classes`."""
    return f"{count:,} {noun if count == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def quoted(name: str) -> str:
    """A name as a part of a sentence."""
    return f"“{short(name)}”"


def short(name: str, most: int = LONGEST) -> str:
    """A name of bounded length."""
    return name if len(name) <= most else name[: most - 1] + "…"


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """`cat, dog and owl`, or `cat, dog, owl, hen, cow and 5 more`."""
    names = list(map(short, names))
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def what_was_trained(data: ReportData) -> str:
    """What was trained on what, in one paragraph."""
    trained, images = data.trained, data.data
    height, width = trained.size
    network = trained.arch if trained.members == 1 else f"ensemble of {trained.members} {trained.arch}"
    weights = f" with {trained.parameters:,} weights" if trained.parameters else ""
    start = trained.weights.removeprefix("from ").partition(": ")[0]
    learnt = "learnt" if data.answers is not None or len(data.history) else "was to learn"
    article = "An" if network[0] in "aeio" else "A"
    pixels = f"{height} × {width} pixels{' in grey' if trained.channels == 1 else ''}"
    text = (
        f"{article} {network}{weights}, starting from {start}, {learnt} to tell "
        f"{plural(len(images.counts), 'class')} apart ({listed(list(images.counts))}) from "
        f"{plural(images.total('train'), 'image')} of {quoted(images.name)}, seen at {pixels}.{_epochs(data)}"
    )
    if images.total("valid"):
        text += f" {plural(images.total('valid'), 'other image')} served to choose during training."
    if data.answers is not None and data.part == "test":
        text += f" The figures are about {plural(len(data.answers), 'image')} that were held out until the end."
    return text


def _epochs(data: ReportData) -> str:
    epochs, best = len(data.history), data.history.best
    if data.trained.probe:
        return " Only a linear layer on top of a frozen network was fitted."
    if not epochs:
        return ""
    times = "once" if epochs == 1 else f"{epochs:,} times"
    if best is None:
        never = "was never better than at the start by more than chance"
        return f" It went through them {times}, but {never}; so the start was kept."
    return (
        f" It went through them {times}{f' and was best after {best.epoch:,}, which was kept' if epochs > 1 else ''}."
    )


def what_to_expect(data: ReportData, result: Evaluation, interval: tuple[float, float]) -> str:
    """What the figures mean for new images."""
    right = round(result.accuracy * result.n)
    low, high = (percent(end, 0) for end in interval)
    often = f"between {low} and {high} of the answers" if low != high else f"about {low} of the answers"
    held = "that it had never seen" if data.part == "test" else "that also served to choose during training"
    text = (
        f"Of {plural(result.n, 'image')} {held}, it named {right:,} right. For new images of the same kind and origin, "
        f"expect {often} to be right."
    )
    support = np.array([row.support for row in result.per_class])
    common = result.per_class[int(support.argmax())]
    always = common.support / result.n
    return text + f" Always answering {quoted(common.name)} would be right for {percent(always, 0)}."


def warnings(
    data: ReportData,
    result: Evaluation,
    interval: tuple[float, float],
    pairs: Sequence[Pair],
    slicings: Sequence[Slicing],
) -> list[str]:
    """What a reader should mind, the gravest first."""
    found = [*_of_the_run(data), *_of_the_number(data, result, interval), *_of_classes(data, result, pairs)]
    found += _of_confidence(data)
    for slicing in slicings:
        found += [
            f"It is worse on some images ({slicing.title.lower()}: {one.name}): {percent(one.right / one.n)} of "
            f"{plural(one.n, 'image')} are right."
            for one in slicing.slices
            if one.odd < 0
        ]
    return [*found, *_of_training(data), *_of_data(data)]


def _of_the_run(data: ReportData) -> list[str]:
    found = []
    if data.status not in ("done", "stopped early"):
        found.append(f"This run has not ended as planned ({data.status}): the model may be worse than it could be.")
    if data.answers is not None and data.part != "test":
        found.append(
            "There is no test part: the figures are about validation images, which already served to choose the best "
            "epoch, so they look better than they are."
        )
    return found


def _of_the_number(data: ReportData, result: Evaluation, interval: tuple[float, float]) -> list[str]:
    low, high = interval
    found = []
    if high - low > WIDE:
        found.append(
            f"{plural(result.n, 'image')} are few to test on: chance alone can move accuracy from {percent(low, 0)} "
            f"to {percent(high, 0)}. Hold out more before you compare models."
        )
    few = [row.name for row in result.per_class if row.support < FEW_OF_A_CLASS]
    if few:
        classes = f"{plural(len(few), 'class')} ({listed(few)})"
        found.append(f"{classes} were tested on fewer than {FEW_OF_A_CLASS} images: their own figures say little.")
    return found


def _of_classes(data: ReportData, result: Evaluation, pairs: Sequence[Pair]) -> list[str]:
    found, names = [], list(data.data.counts)
    weak = [row for row in result.per_class if _is_weak(row, result)]
    if weak:
        worst = min(weak, key=lambda row: row.recall)
        more = f", and {plural(len(weak) - 1, 'other class')} too" if len(weak) > 1 else ""
        right = f"{round(worst.recall * worst.support):,} of {worst.support:,} right"
        found.append(f"It recognises {quoted(worst.name)} less often than the rest: {right}{more}.")
    if pairs and pairs[0].count > 1:
        pair = pairs[0]
        found.append(
            f"Most often it takes {quoted(names[pair.true])} for {quoted(names[pair.called])}: {pair.count:,} of "
            f"{plural(pair.support, 'image')}."
        )
    return found


def _is_weak(row: ClassResult, result: Evaluation) -> bool:
    """Whether a class is recognised less often than the others, by more than chance explains."""
    if not 0 < row.support < result.n:
        return False
    hits, others = round(row.recall * row.support), round(result.accuracy * result.n)
    return wilson_interval(hits, row.support)[1] < wilson_interval(others - hits, result.n - row.support)[0]


def _of_confidence(data: ReportData) -> list[str]:
    if data.answers is None:
        return []
    answers = data.answers
    right = answers.predicted == answers.targets
    sure, hits = float(answers.probabilities.max(axis=1).mean()), float(right.mean())
    low, high = wilson_interval(int(right.sum()), len(answers))
    if abs(sure - hits) < OFF or low <= sure <= high:
        return []
    how = "surer than it should be" if sure > hits else "less sure than it could be"
    return [f"It is {how}: its confidence is {percent(sure, 0)} on average, and {percent(hits, 0)} are right."]


def _of_training(data: ReportData) -> list[str]:
    best = data.history.best
    if best is None or best.valid_accuracy is None or best.train_accuracy - best.valid_accuracy < GAP:
        return []
    return [
        f"It knows its training images much better ({percent(best.train_accuracy, 0)} right) than others "
        f"({percent(best.valid_accuracy, 0)}): more images, or more augmentation, should help."
    ]


def _of_data(data: ReportData) -> list[str]:
    bad, images = len(data.data.bad), sum(map(data.data.total, ("train", "valid", "test")))
    found = []
    if bad > MANY_BAD * images:
        found.append(f"{plural(bad, 'file')} could not be read and took no part.")
    if data.data.findings:
        found.append(f"Something is odd about the data: see {plural(len(data.data.findings), 'finding')} below.")
    return found
