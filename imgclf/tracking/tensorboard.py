"""TensorBoard: scalars, pictures, the graph of the model, and the settings with the figures that came of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from imgclf.core.errors import ConfigError, MissingExtra
from imgclf.core.results import EpochRecord, Evaluation
from imgclf.tracking.backend import (
    Backend,
    Pictures,
    Session,
    draw_confusion,
    epoch_figures,
    figures,
    settings_text,
)

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard(Backend):
    """Writes event files: into `folder`, else into the run folder, so that `tensorboard --logdir runs` has all runs.

    What train and valid have in common are two lines of one chart, which TensorBoard draws for two folders. Where a run
    goes on, what it had noted beyond that place before it was killed is no more.
    """

    name = "tensorboard"

    def __init__(self, folder: str | None = None) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise MissingExtra("tensorboard", "TensorBoard logs") from None
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._parts: dict[str, SummaryWriter] = {}
        self._stepped = False

    def where(self, session: Session) -> str:
        """The folder of the event files."""
        return str(self._place(session))

    def _place(self, session: Session) -> Path:
        if self._folder is not None:
            return Path(self._folder, session.name)
        if session.folder is None:
            raise ConfigError('tensorboard needs a folder: tracker("tensorboard=logs"), or fit(…, runs="runs")')
        return session.folder / FOLDER

    def prepare(self, session: Session, model: nn.Module, example: torch.Tensor) -> str:
        """Write the graph, where the network can be traced."""
        import torch
        from torch.utils.tensorboard import SummaryWriter

        self._writer, self._parts, self._stepped = SummaryWriter(str(self._place(session))), {}, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # traces are deprecated, and they are what TensorBoard shows
                traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
                self._writer.add_graph(traced, example)
        except Exception as error:  # what a forward function may do that can't be traced has no limits
            return f"the network can't be traced, so there is no graph of it ({type(error).__name__})"
        return ""

    def open(self, session: Session) -> None:
        """The settings as text."""
        self._settings, self._figures = dict(session.settings), dict[str, float]()
        self._log.add_text("settings", settings_text(session.settings))

    @property
    def _log(self) -> SummaryWriter:
        assert self._writer is not None
        return self._writer

    def baseline(self, result: Evaluation) -> None:
        """Epoch 0."""
        self._scalars({"valid_loss": result.loss, "valid_accuracy": result.accuracy}, 0)

    def step(self, epoch: float, number: int, loss: float, lr: float) -> None:
        """Over the number of steps."""
        if not self._stepped:
            self._log.close()
            self._writer, self._stepped = _writer(self._log.log_dir, number), True
        self._log.add_scalar("steps/train_loss", loss, number)
        self._log.add_scalar("steps/lr", lr, number)

    def epoch(self, record: EpochRecord) -> None:
        """Over the number of epochs: loss and accuracy of train and valid; learning rate and seconds."""
        self._scalars(epoch_figures(record), record.epoch)

    def _scalars(self, values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            part, _, figure = name.rpartition("_")
            part = part or "train"  # the learning rate and seconds too
            if part not in self._parts:
                self._parts[part] = _writer(str(Path(self._log.log_dir, part)), epoch)
            self._parts[part].add_scalar(figure, value, epoch)

    def batch(self, pictures: Pictures) -> None:
        """One picture of all."""
        self._log.add_image(pictures.name, pictures.draw(), dataformats="HWC")

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """The images with their answers, and the confusion matrix."""
        self._figures |= figures(result, part)
        self._log.add_image(pictures.name, pictures.draw(), dataformats="HWC")
        self._log.add_image(f"{part}-confusion", draw_confusion(result), dataformats="HWC")

    def flush(self) -> None:
        """To the files, which TensorBoard reads while they grow."""
        for writer in (self._log, *self._parts.values()):
            writer.flush()

    def close(self, ended: str) -> None:
        """The settings beside the figures of the kept weights, if there are any."""
        if self._figures:
            named = {f"hparam/{name}": value for name, value in self._figures.items()}
            self._log.add_hparams({**self._settings, "ended": ended}, named, run_name=".")
        for writer in (self._log, *self._parts.values()):
            writer.close()
        self._writer = None


def _writer(folder: str, begin: int) -> SummaryWriter:
    """Goes on in a folder, where whatever was noted from this place on counts no more."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=begin)
