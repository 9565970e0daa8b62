"""What the reader of a report should mind, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imgclf.core.results import ENDED, ClassResult, Evaluation, History
from imgclf.core.text import percent, plural, shorten
from imgclf.evaluation.calibration import ENOUGH
from imgclf.evaluation.intervals import wilson_interval
from imgclf.report.confusion import Pair
from imgclf.report.slices import Slicing
from imgclf.report.text import NAMED, commonest, instead_of_epochs, listed, never_better, quoted, valid_losses
from imgclf.report.view import ReportData

WIDE = 0.06  # of an interval
FEW_OF_A_CLASS = 10
OFF = 0.05  # between confidence and accuracy
GAP = 0.1  # between train and valid
MANY_BAD = 0.01
BARELY = 0.2  # of the way from always the same answer to no mistake
LEARNED = 0.7  # of the images are right
FALL = 0.02  # of the valid loss in the second half of training, in nats
PRETRAINED = "efficientnet_lite0"  # its weights can also be had without a network
BRIEF = 160  # characters of a finding


@dataclass(frozen=True)
class Advice:
    """What a reader should mind, what to do about it and, where there is one, the command for that."""

    text: str
    do: str
    command: str = ""


def warnings(
    data: ReportData,
    result: Evaluation,
    interval: tuple[float, float],
    pairs: Sequence[Pair],
    slicings: Sequence[Slicing],
) -> list[Advice]:
    """What a reader should mind, the gravest first, and what to do about it."""
    found = [*_of_the_run(data), *_of_leaks(result)]
    if _is_undertrained(data):
        found += [_train_longer(data), *_of_the_number(data, result, interval)]
    else:
        found += [*_of_chance(data, result, interval), *_of_the_number(data, result, interval)]
        found += [*_of_classes(data, result, pairs), *_of_confidence(data)]
    for slicing in slicings:
        found += [
            Advice(
                f"It is worse on some images ({slicing.title.lower()}: {one.name}): {percent(one.right / one.n)} of "
                f"{plural(one.n, 'image')} are right.",
                "More training images of that kind should help",
            )
            for one in slicing.slices
            if one.odd < 0
        ]
    return [*found, *_of_training(data), *_of_data(data)]


def before_use(data: ReportData) -> Advice | None:
    """What to do before the model is of any use: where it has not learned enough, or does as well as a guess."""
    if _is_undertrained(data):
        return _train_longer(data)
    result = None if data.answers is None else data.answers.evaluation
    if result is None or result.intervals is None:
        return None
    return next(iter(_of_chance(data, result, result.intervals.accuracy)), None)


def without_answers(data: ReportData) -> Advice:
    """What to do where there are no figures of how good the model is."""
    text = f"This run has no answers to any images yet ({data.status}): there are no figures of how good the model is."
    if data.status not in ENDED:
        return _go_on(data, text)
    if not data.data.total("test"):
        return _hold_out(data, text)
    return Advice(text, "Where its images are there, test it", data.typed.evaluate)


def _of_the_run(data: ReportData) -> list[Advice]:
    found = []
    if data.status not in ENDED:
        text = f"This run has not ended as planned ({data.status}): the model may be worse than it could be."
        found.append(_go_on(data, text))
    if data.answers is not None and data.part != "test":
        text = (
            "There is no test part: the figures are about validation images, which already served to choose the best "
            "epoch, so they look better than they are."
        )
        found.append(_hold_out(data, text))
    return found


def _of_leaks(result: Evaluation) -> list[Advice]:
    if not result.seen:
        return []
    text = (
        f"Training saw {result.seen:,} of the {plural(result.n, 'image')} as well, which are in two parts: the "
        "figures look better than they are."
    )
    if result.unseen is not None:
        rest, right = result.unseen, round(result.unseen.accuracy * result.unseen.n)
        text += f" Of the other {rest.n:,}, it named {right:,} right ({percent(rest.accuracy)})."
    return [Advice(text, "Keep each image in one part only, and train again")]


def _go_on(data: ReportData, text: str, so: str = "") -> Advice:
    """Advice to go on with a run or, where that is not possible, to train anew; `so` is what comes of it."""
    return Advice(text, f"{'Go on with it' if data.typed.resume else 'Train anew'}{so}", data.typed.resume)


def _hold_out(data: ReportData, text: str) -> Advice:
    return Advice(text, "Hold out images for a test (--split), and train again", data.typed.hold_out)


def _of_chance(data: ReportData, result: Evaluation, interval: tuple[float, float]) -> list[Advice]:
    (low, high), common = interval, commonest(result)
    always = common.support / result.n
    if always == 1 or (low > always and high - always > BARELY * (1 - always)):
        return []
    how = "not" if result.accuracy <= always else "not surely" if low <= always else "barely"
    text = (
        f"It is {how} better than always answering {quoted(common.name)}: {percent(result.accuracy)} against "
        f"{percent(always)}."
    )
    if _from_scratch(data):
        first = "" if data.offline else ' (pip install "imgclf[offline]" first)'
        todo = f"See what a pretrained network makes of these images, which is quick{first}"
        return [Advice(text, todo, _on_data(data, "train", f"--recipe probe --arch {PRETRAINED}"))]
    height, width = data.trained.size
    todo = (
        "Look whether you could tell these classes apart at that size (else --size), and whether the labels are right"
    )
    return [Advice(text, todo, _on_data(data, "show", f"--size {height}x{width}"))]


def _of_the_number(data: ReportData, result: Evaluation, interval: tuple[float, float]) -> list[Advice]:
    low, high = interval
    found = []
    if high - low > WIDE:
        text = (
            f"{plural(result.n, 'image')} are few to test on: chance alone can move accuracy from {percent(low, 0)} "
            f"to {percent(high, 0)}."
        )
        more = f", or hold out more (as --split {data.typed.more_test})," if data.typed.more_test else ""
        todo = f"Add test images{more} before you compare models"
        found.append(Advice(text, todo))
    untested = [row.name for row in result.per_class if not row.support]
    if untested:
        text = f"There are no test images of {plural(len(untested), 'class')} ({listed(untested)}): not tested."
        found.append(Advice(text, "Add test images of them"))
    few = [row.name for row in result.per_class if 0 < row.support < FEW_OF_A_CLASS]
    if few:
        classes = f"{plural(len(few), 'class')} ({listed(few)})"
        text = f"{classes} were tested on fewer than {FEW_OF_A_CLASS} images: their own figures say little."
        found.append(
            Advice(text, f"Add images of {'it' if len(few) == 1 else 'them'} before you judge by these figures")
        )
    return found


def _of_classes(data: ReportData, result: Evaluation, pairs: Sequence[Pair]) -> list[Advice]:
    found, names = [], list(data.data.counts)
    weak = sorted((row for row in result.per_class if _is_weak(row, result)), key=lambda row: row.recall or 0.0)
    if weak:
        worst, *others = weak
        text = f"It recognizes {quoted(worst.name)} less often than the rest: {_hits(worst)} right"
        more = [f"{quoted(row.name)} ({_hits(row)})" for row in others[: NAMED - 1]]
        if len(others) > len(more):
            more.append(f"{len(others) - len(more):,} more")
        also = f"; so also {', '.join(more)}" if more else ""
        todo = f"More images of {'them' if more else 'it'} should help most; to see how much"
        found.append(_with_curve(data, f"{text}{also}.", todo))
    if pairs and pairs[0].count > 1:
        pair = pairs[0]
        text = (
            f"Most often it takes {quoted(names[pair.true])} for {quoted(names[pair.called])}: {pair.count:,} of "
            f"{plural(pair.support, 'image')}."
        )
        found.append(Advice(text, "Look at them under Most confused pairs, and whether their labels are right"))
    return found


def _hits(row: ClassResult) -> str:
    return f"{row.hits:,} of {row.support:,}"


def _is_weak(row: ClassResult, result: Evaluation) -> bool:
    """Whether a class is recognized less often than the others, by more than chance explains."""
    if not 0 < row.support < result.n:
        return False
    hits, others = row.hits, round(result.accuracy * result.n)
    return wilson_interval(hits, row.support)[1] < wilson_interval(others - hits, result.n - row.support)[0]


def _of_confidence(data: ReportData) -> list[Advice]:
    if data.answers is None:
        return []
    answers = data.answers
    right = answers.predicted == answers.targets
    sure, hits = float(answers.probabilities.max(axis=1).mean()), float(right.mean())
    low, high = wilson_interval(int(right.sum()), len(answers))
    if abs(sure - hits) < OFF or low <= sure <= high:
        return []
    how = "surer than it should be" if sure > hits else "less sure than it could be"
    text = f"It is {how}: its confidence is {percent(sure, 0)} on average, and {percent(hits, 0)} are right."
    if answers.temperature == 1:
        so = ", and its confidence will be adjusted"
        if data.data.total("valid") < ENOUGH:
            how = "" if "valid" in data.data.brought else " (--split)"
            return [Advice(text, f"Train with {ENOUGH} or more validation images{how}{so}")]
        return [Advice(text, f"Train anew{so}") if data.status in ENDED else _go_on(data, text, so)]
    return [Advice(text, "Go by what was right at which confidence (below), not by the number itself")]


def _of_training(data: ReportData) -> list[Advice]:
    best, losses, found = data.history.best, valid_losses(data.history), []
    if best is not None and best.valid_accuracy is not None and best.train_accuracy - best.valid_accuracy >= GAP:
        text = (
            f"It knows its training images much better ({percent(best.train_accuracy, 0)} right) than others "
            f"({percent(best.valid_accuracy, 0)})."
        )
        found.append(
            _with_curve(data, text, "A stronger augmentation (--augment) may help, or more images; to see how much")
        )
    if data.status not in ENDED:
        return found
    if _is_still_better(data.history) and not _is_undertrained(data):
        text = (
            f"It was still getting better when training ended: the last of {len(losses):,} epochs was the best "
            f"(valid loss {losses[-1]:.3f}, and {losses[_half(losses)]:.3f} at half time)."
        )
        found.append(Advice(text, "Train longer", data.typed.longer))
    if best is None and losses and data.start is not None:
        text = f"Training brought nothing: {never_better(losses, data.start[0])} than the start, which was kept."
        todo = instead_of_epochs(probed=data.probed)
        found.append(Advice(text, todo[0].upper() + todo[1:]))
    return found


def _is_undertrained(data: ReportData) -> bool:
    """Whether the network still makes many mistakes on the very images that it learns from, and was getting better.

    Then more images or other labels can't help yet.
    """
    history = data.history
    if data.status not in ENDED or history.best is None:
        return False
    first, last = history.epochs[(len(history) - 1) // 2], history.epochs[-1]
    valid = last.train_accuracy if last.valid_accuracy is None else last.valid_accuracy
    learning = len(history) == 1 or first.train_loss - last.train_loss >= FALL
    return learning and max(last.train_accuracy, valid) < LEARNED and last.train_accuracy - valid < GAP


def _train_longer(data: ReportData) -> Advice:
    last = data.history.epochs[-1]
    text = (
        f"It has not learned its own training images yet: {percent(last.train_accuracy)} of them are right after "
        f"{plural(len(data.history), 'epoch')}, and it was still getting better."
    )
    return Advice(text, "Train longer, or with a larger --lr", data.typed.longer)


def _is_still_better(history: History) -> bool:
    """Whether the last epoch was the best, and the loss on valid fell clearly in the second half."""
    losses = valid_losses(history)
    if len(losses) < 2 or not history.epochs[-1].best or losses[-1] > min(losses):
        return False
    return losses[_half(losses)] - losses[-1] >= FALL


def _half(losses: Sequence[float]) -> int:
    return (len(losses) - 1) // 2


def _of_data(data: ReportData) -> list[Advice]:
    bad, images = len(data.data.bad), sum(map(data.data.total, ("train", "valid", "test")))
    found = []
    if bad > MANY_BAD * images:
        text = f"{plural(bad, 'file')} could not be read and took no part."
        found.append(Advice(text, "Repair or remove them: they are named under Data"))
    if data.data.findings:
        first, *others = data.data.findings
        more = f" ({len(others):,} more below)" if others else ""
        text = f"Something is odd about the data: {shorten(first, BRIEF)}{more}."
        found.append(Advice(text, "Remove copies and what does not belong there, put labels right, and train again"))
    return found


def _from_scratch(data: ReportData) -> bool:
    return data.trained.weights.startswith("from scratch")


def _on_data(data: ReportData, command: str, options: str) -> str:
    """A command on the data of the run; "" where none can name them."""
    return f"imgclf {command} {data.typed.data} {options}" if data.typed.data else ""


def _with_curve(data: ReportData, text: str, todo: str) -> Advice:
    """Advice that ends in `…; to see how much` the learning curve, if there is a command for that."""
    return Advice(text, todo if data.typed.curve else todo.partition(";")[0], data.typed.curve)
