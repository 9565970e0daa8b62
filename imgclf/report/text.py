"""The sentences of a report, for readers who have never trained a model."""

from __future__ import annotations

from collections.abc import Sequence

from imgclf.core.results import ClassResult, Evaluation, History
from imgclf.core.text import first_few, percent, plural, shorten
from imgclf.report.view import ReportData, accuracy_interval
from imgclf.training.defaults import EPOCHS

MAX_NAMES = 5
MAX_NAME_CHARACTERS = 60  # in a sentence


def quoted(name: str) -> str:
    """A name as a part of a sentence."""
    return f"“{shorten(name, MAX_NAME_CHARACTERS)}”"


def listed(names: Sequence[str], most: int = MAX_NAMES) -> str:
    """`cat, dog and owl`, or `cat, dog, owl, hen, cow and 5 more`."""
    names = [shorten(name, MAX_NAME_CHARACTERS) for name in names]
    if len(names) > most:
        return first_few(names, most)
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def what_was_trained(data: ReportData) -> str:
    """What was trained on what, in one paragraph."""
    info, parameters, (height, width) = data.info, data.network.parameters, data.info.preprocess["size"]
    network = f"ensemble of {len(info.members)} {info.arch}" if len(info.members) > 1 else info.arch
    text = (
        f"{'An' if network[0] in 'aeio' else 'A'} {network}{f' ({parameters:,} parameters)' if parameters else ''}, "
        f"trained {_start(data.weights)} on {plural(data.total('train'), 'image')} of {quoted(info.data)} to "
        f"distinguish {plural(len(data.counts), 'class')} ({listed(list(data.counts))}) at {height} × {width} pixels"
        f"{' in gray' if info.preprocess['channels'] == 1 else ''}.{_epochs(data)}"
    )
    if data.total("valid"):
        text += f" The model was validated on {plural(data.total('valid'), 'other image')}."
    if data.predictions is not None and data.part == "test":
        text += f" The metrics are measured on {plural(len(data.predictions), 'held-out image')}."
    return text


def _start(weights: str) -> str:
    if weights.startswith("from scratch"):
        return "from scratch"
    return "from ImageNet weights" if weights == "imgclf[offline]" else f"from the weights {weights}"


def _epochs(data: ReportData) -> str:
    epochs, best = len(data.history), data.history.best
    if data.experiment.train.epochs == 0:
        return " It is a linear probe: only a linear layer on the features of the frozen network was trained."
    if not epochs:
        return ""
    trained = f" Training took {plural(epochs, 'epoch')}"
    if best is None:
        losses = valid_losses(data.history)
        never = never_better(losses, data.start[0]) if losses and data.start else "no epoch was significantly better"
        return f"{trained}; {never} than {initial_name(probed=data.probed)}, which was kept."
    return f"{trained}{f'; the model of epoch {best.epoch:,} was kept' if epochs > 1 else ''}."


def what_to_expect(data: ReportData, result: Evaluation) -> str:
    """What the metrics mean for new images."""
    right = round(result.accuracy * result.n)
    images = f"{right:,} of {plural(result.n, 'held-out image' if data.part == 'test' else 'validation image')}"
    seen = f", {result.seen:,} of which were also used in training," if result.seen else ""
    text = f"{images}{seen} {'was' if result.n == 1 else 'were'} classified correctly."
    if result.seen == result.n:
        return f"{text} They can't show the accuracy on new images."
    low, high = map(percent, accuracy_interval(result.unseen or result))
    common = commonest(result)
    return (
        f"{text} On new images of the same kind and origin, expect an accuracy of "
        f"{f'{low} to {high}' if low != high else low}. Always predicting {quoted(common.name)} would reach "
        f"{percent(common.support / result.n)}."
    )


def never_better(losses: Sequence[float], start: float) -> str:
    """How epochs with these validation losses compare with the initial model, if none of them was kept."""
    if not losses:
        return "no epoch has ended"
    if min(losses) > start:
        epochs = {1: "the only epoch of fine-tuning was", 2: "both epochs of fine-tuning were"}
        return f"{epochs.get(len(losses), f'all {len(losses):,} epochs of fine-tuning were')} worse"
    return "no epoch of fine-tuning was significantly better"


def why_kept(history: History) -> str:
    """Why the best epoch was kept, up to its validation loss."""
    best, losses = history.best, valid_losses(history)
    if best is None or not losses or best.valid_loss == min(losses):
        return "lowest valid loss, "
    return "last; no earlier epoch was significantly better: valid loss "


def initial_name(*, probed: bool) -> str:
    """What training begins with: a linear head on frozen features (`probed`), or a model."""
    return "the linear probe" if probed else "the initial model"


def instead_of_epochs(epochs: int, ended: str, *, probed: bool, data: str = "DATA") -> str:
    """The advice where this number of epochs, `ended` as a run's status says, did not help; `probed` as above, `data`
    as a command takes them."""
    if probed and epochs < EPOCHS[True][0] and ended != "stopped early":
        return f"{plural(epochs, 'epoch')} may be too few: try imgclf train {data} --epochs {EPOCHS[True][1]}"
    if probed:
        return "--recipe probe is enough here; more images or a larger --size may help"
    return "keep the initial model; more images may help"


def valid_losses(history: History) -> list[float]:
    """Those of all epochs, or none where there is no valid part."""
    losses = [record.valid_loss for record in history if record.valid_loss is not None]
    return losses if len(losses) == len(history) else []


def commonest(result: Evaluation) -> ClassResult:
    """The class with the most images."""
    return max(result.per_class, key=lambda row: row.support)
