"""What `imgclf tune` shows: trials on stderr as they end, the best of them on stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from imgclf.cli import _console as console
from imgclf.cli._options import command_line
from imgclf.cli._training import TrainView
from imgclf.pictures import save_importances
from imgclf.training.callbacks import TrainState
from imgclf.tuning import Trial, Tuning, tune

SHOWN = 5


def run_search(data: str, changes: Mapping[str, Any], options: Mapping[str, Any], *, as_json: bool) -> None:
    """Search and show the result; ends with 130 or 143 where the search was interrupted."""
    view = TuneView()
    with view.progress:
        result = tune(data, changes, callbacks=[view], **options)
    picture = str(Path(result.config).with_suffix(".png")) if result.importances else None
    if picture is not None:
        save_importances(result.importances, Path(picture))
    if result.ended != "done":
        console.warn(f"{result.ended}; the same command goes on, with the trial that was under way")
    if as_json:
        console.show_json({**result.to_dict(), "picture": picture})
    else:
        _show(data, result, picture)
    if result.ended == "interrupted":
        raise typer.Exit(console.Interruption.code)


def _show(data: str, result: Tuning, picture: str | None) -> None:
    best, *_ = done = [trial for trial in result.trials if trial.loss is not None]
    rows = [(t.number + 1, f"{t.loss:.4f}", *map(_word, t.values.values())) for t in done[:SHOWN]]
    console.show_table(["trial", "valid loss", *best.values], rows)
    ends = Counter(trial.ended for trial in result.trials)
    console.show(f"trials:  {len(result.trials)} ({', '.join(f'{count} {end}' for end, count in ends.items())})")
    usual = next((trial for trial in done if trial.usual), None)
    if best.usual:
        console.show("best:    the usual settings: no trial did better")
    elif usual is not None:
        console.show(f"best:    trial {best.number + 1}, valid loss {best.loss:.4f}; {usual.loss:.4f} without a search")
    if picture is not None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importances.items())
        console.show(f"matters: {shares}")
        console.show(f"picture: {picture}")
    console.show(f"next:    {command_line('train', data, {'config': result.config})}")


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class TuneView(TrainView):
    """Shows the events of `tune` on stderr as they come: a callback. `word` is what one training of many is called."""

    word = "trial"
    _place = (0, 0)

    def _on_trial(self, place: tuple[int, int]) -> None:
        self._place = place
        self.waiting(self._which())

    def _on_step(self, state: TrainState) -> None:
        done, n = state.epoch * state.steps_per_epoch + state.step, state.epochs * state.steps_per_epoch
        self._bar(self._which(), done, n, f"loss {state.loss:.4f}")

    def _which(self) -> str:
        return f"{self.word} {self._place[0]} of {self._place[1]}"

    def _on_tried(self, trial: Trial) -> None:
        loss = trial.ended if trial.loss is None else f"valid loss {trial.loss:.4f}"
        values = ", ".join(f"{name} {_word(value)}" for name, value in trial.values.items())
        console.say(f"trial {trial.number + 1:3d}: {loss:18}  {values}")
