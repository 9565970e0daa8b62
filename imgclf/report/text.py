"""The report in plain words, for who has never trained a model: what it is, what it is good for, what to mind."""

from __future__ import annotations

from collections.abc import Sequence

from imgclf.core.results import ClassResult, Evaluation, History
from imgclf.core.text import percent, plural, shorten
from imgclf.report.view import ReportData

NAMED = 5
LONGEST = 60  # characters of a name in a sentence


def quoted(name: str) -> str:
    """A name as a part of a sentence."""
    return f"“{shorten(name, LONGEST)}”"


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """`cat, dog and owl`, or `cat, dog, owl, hen, cow and 5 more`."""
    names = [shorten(name, LONGEST) for name in names]
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
    pixels = f"{height} × {width} pixels{' in gray' if trained.channels == 1 else ''}"
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
        if (losses := valid_losses(data.history)) and data.start is not None:
            never = f"{never_better(losses, data.start[0])} than the start"
        return f" It went through them {times}, but {never}; so the start was kept."
    return f" It went through them {times}{f' and is kept as it was after {best.epoch:,}' if epochs > 1 else ''}."


def what_to_expect(data: ReportData, result: Evaluation, interval: tuple[float, float]) -> str:
    """What the figures mean for new images."""
    right = round(result.accuracy * result.n)
    if result.unseen is not None and result.unseen.intervals is not None:
        interval = result.unseen.intervals.accuracy
    low, high = (percent(end, 0) for end in interval)
    often = f"between {low} and {high} of the answers" if low != high else f"about {low} of the answers"
    held = "that it had never seen" if data.part == "test" else "that also served to choose during training"
    if result.seen:
        held = f"that were held out, {result.seen:,} of which it had seen in training all the same"
    text = f"Of {plural(result.n, 'image')} {held}, it named {right:,} right."
    if result.seen == result.n:
        return f"{text} How it does on new images, these can't tell."
    text += f" For new images of the same kind and origin, expect {often} to be right."
    common = commonest(result)
    always = common.support / result.n
    return text + f" Always answering {quoted(common.name)} would be right for {percent(always, 0)}."


def never_better(losses: Sequence[float], start: float) -> str:
    """How epochs with these losses on valid did, of which none was kept against that of the start."""
    if not losses:
        return "no epoch has ended"
    worse = min(losses) > start
    if len(losses) == 1:
        return f"the only epoch was {'worse' if worse else 'not significantly better'}"
    return (
        f"all {len(losses):,} epochs were worse" if worse else f"no epoch of {len(losses):,} was significantly better"
    )


def why_kept(history: History) -> str:
    """What speaks for the epoch that is kept, up to its valid loss."""
    best, losses = history.best, valid_losses(history)
    if best is None or not losses or best.valid_loss == min(losses):
        return "lowest valid loss, "
    return "last; no earlier epoch was significantly better: valid loss "


def instead_of_epochs(*, probed: bool) -> str:
    """What to do where training brings nothing: the start is a head on frozen features (`probed`), or a model."""
    if probed:
        return "--recipe probe is enough here; more images or a larger --size may bring more"
    return "the model may stay as it was; more images may bring more"


def valid_losses(history: History) -> list[float]:
    """Those of all epochs, or none where there is no valid part."""
    losses = [record.valid_loss for record in history if record.valid_loss is not None]
    return losses if len(losses) == len(history) else []


def commonest(result: Evaluation) -> ClassResult:
    """The class with the most images."""
    return max(result.per_class, key=lambda row: row.support)
