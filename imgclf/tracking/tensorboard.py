"""TensorBoard: scalars, pictures, the graph of the model, and the settings with the metrics they led to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgclf.core.errors import ConfigError
from imgclf.tracking.backend import MetricLogger, Session, import_package

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard(MetricLogger):
    """Writes event files: into `folder`, else into the run folder, so that `tensorboard --logdir runs` shows all runs.

    `train` and `valid` have a folder each, as TensorBoard draws two lines in one chart only for two folders; `steps`
    has one, too. Where a run is resumed, what a killed run had written after that point is hidden.
    """

    name = "tensorboard"

    def __init__(self, folder: str | None = None) -> None:
        import_package("torch.utils.tensorboard", "tensorboard", "TensorBoard logs")
        self._given = folder
        self._folder = Path()
        self._writers: dict[str, SummaryWriter] = {}  # by folder below
        self._summary: dict[str, float] = {}

    def location(self, session: Session) -> str:
        """The folder of the event files."""
        if self._given is not None:
            return str(Path(self._given, session.name))
        if session.folder is None:
            raise ConfigError('tensorboard needs a folder: tracker("tensorboard=logs"), or fit(…, runs="runs")')
        return str(session.folder / FOLDER)

    def prepare(self, session: Session, model: nn.Module, example: torch.Tensor) -> str:
        """Write the graph, where the network can be traced."""
        import torch

        self._folder, self._writers, self._summary = Path(self.location(session)), {}, {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tracing is deprecated, but TensorBoard shows nothing else
                traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
                self._writer("").add_graph(traced, example)
        except Exception as error:  # a forward function that can't be traced may raise anything
            return f"the network can't be traced, so there is no graph of it ({type(error).__name__})"
        return ""

    def _writer(self, part: str, begin: int | None = None) -> SummaryWriter:
        """The writer of one folder below; when it is opened, what is there from `begin` on is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        if part not in self._writers:
            self._writers[part] = SummaryWriter(str(self._folder / part), purge_step=begin)
        return self._writers[part]

    def open(self, session: Session) -> None:
        """Write the settings as a table in Markdown."""
        self._settings: dict[str, Any] = dict(session.settings)
        cells = ((key, str(value).replace("|", "\\|").replace("\n", " ")) for key, value in session.settings.items())
        rows = [f"| {key} | {cell} |" for key, cell in cells]
        self._writer("").add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def step(self, epoch: float, number: int, loss: float, lr: float) -> None:
        """Over the number of steps."""
        writer = self._writer("steps", number)
        writer.add_scalar("steps/train_loss", loss, number)
        writer.add_scalar("steps/lr", lr, number)

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Over the number of epochs: loss and accuracy of train and valid; learning rate and seconds beside train."""
        for name, value in values.items():
            part, _, metric = name.rpartition("_")
            self._writer(part or "train", epoch).add_scalar(metric, value, epoch)

    def log_summary(self, values: Mapping[str, float]) -> None:
        """For the table of hyperparameters, at the end."""
        self._summary |= values

    def log_picture(self, name: str, pixels: Any) -> None:
        """Under its name."""
        self._writer("").add_image(name, pixels, dataformats="HWC")

    def flush(self) -> None:
        """To the files, which TensorBoard reads while they grow."""
        for writer in self._writers.values():
            writer.flush()

    def close(self, ended: str) -> None:
        """Write the settings beside the metrics of the final weights, if there are any."""
        if self._summary:
            metrics = {f"hparam/{name}": value for name, value in self._summary.items()}
            self._writer("").add_hparams({**self._settings, "ended": ended}, metrics, run_name=".")
        for writer in self._writers.values():
            writer.close()
