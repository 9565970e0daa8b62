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
from imgclf.plots.figures import save_importances
from imgclf.studies.events import NextTraining
from imgclf.studies.tune import MIN_IMPORTANCE_TRIALS, Trial, TrialEnded, Tuning, tune
from imgclf.training.events import Event, StepEnded

MAX_ROWS = 5


def run_search(data: str, config: Mapping[str, Any], options: Mapping[str, Any], *, as_json: bool) -> None:
    """Search and show the result; exits with 130 or 143 if the search was interrupted."""
    view = TuneView()
    with view.progress:
        result = tune(data, config=config, callbacks=[view], **options)
    picture = str(Path(result.config).with_suffix(".png")) if result.importances else None
    if picture is not None:
        count = sum(trial.loss is not None for trial in result.trials)
        save_importances(result.importances, Path(picture), f"{result.data}, {result.arch}", count)
    if result.ended != "done":
        console.warn(f"{result.ended}; the same command resumes the search")
    if as_json:
        console.show_json({**result.to_dict(), "picture": picture})
    else:
        _show(data, result, picture)
    if result.ended == "interrupted":
        raise typer.Exit(console.Interruption.code)


def _show(data: str, result: Tuning, picture: str | None) -> None:
    best, *_ = done = [trial for trial in result.trials if trial.loss is not None]
    header = ["trial", "valid loss", *best.values]
    rows = [[t.number + 1, f"{t.loss:.4f}", *map(_word, t.values.values())] for t in done[:MAX_ROWS]]
    if result.initial_loss is not None:
        header.insert(2, "beats initial model")
        for row, trial in zip(rows, done, strict=False):
            row.insert(2, "no" if trial.initial_kept else "yes")
    console.show_table(header, rows)
    ends = Counter(trial.ended for trial in result.trials)
    console.show(f"trials:     {len(result.trials)} ({', '.join(f'{count} {end}' for end, count in ends.items())})")
    if result.initial_loss is not None:
        console.show(f"initial:    valid loss {result.initial_loss:.4f}, before the first epoch")
    console.show(f"best:       {_best(result, best)}")
    if picture is not None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importances.items())
        console.show(f"importance: {shares}")
        console.show(f"picture:    {picture}")
    elif len(done) < MIN_IMPORTANCE_TRIALS:
        console.show(f"importance: needs {MIN_IMPORTANCE_TRIALS} complete trials, there are {len(done)}")
    console.show(f"next:       {command_line('train', data, {'config': result.config})}")


def _best(result: Tuning, best: Trial) -> str:
    """The result of the search, as a sentence."""
    if best.initial_kept:
        return f"no trial beats the initial model (valid loss {result.initial_loss:.4f}), which train would keep"
    if best.default:
        return "the default settings: no trial is better"
    default = "" if result.default_loss is None else f" (defaults: {result.default_loss:.4f})"
    return f"trial {best.number + 1}, valid loss {best.loss:.4f}{default}"


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class TuneView(TrainView):
    """Shows the events of `tune` on stderr: a callback. `word` is the name for one of the trainings."""

    word = "trial"
    _which = ""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case NextTraining(number=number, total=total):
                self._which = f"{self.word} {number} of {total}"
                self.waiting(self._which)
            case StepEnded(state=state):
                done, n = state.epoch * state.steps_per_epoch + state.step, state.epochs * state.steps_per_epoch
                self._bar(self._which, done, n, f"loss {state.loss:.4f}")
            case TrialEnded(trial=trial):
                self._say_trial(trial)
            case _:
                super().__call__(event)

    def _say_trial(self, trial: Trial) -> None:
        loss = trial.ended if trial.loss is None else f"valid loss {trial.loss:.4f}"
        loss += ", initial model kept" if trial.initial_kept else ""
        values = ", ".join(f"{name} {_word(value)}" for name, value in trial.values.items())
        console.say(f"trial {trial.number + 1:3d}: {loss:38}  {values}")
