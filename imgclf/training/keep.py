"""Which weights are kept: those that do best on valid, where that is more than chance, or a mean of good ones."""

from __future__ import annotations

import math

import torch

from imgclf.training.callbacks import TrainState, Weights


def beats_best(state: TrainState, losses: torch.Tensor) -> bool:
    """Whether weights with these losses on the valid images take the place of the best ones.

    That of the start they take only where the losses fell by more than the standard error of their fall: on a few
    images, some of many weights do better by chance.
    """
    start = state.start_losses
    if state.mean_of != (0,) or start is None or len(start) != len(losses):  # an image may have got lost since
        return float(losses.mean()) < state.best_loss
    fall = start - losses
    return float(fall.mean()) > float(fall.std(correction=0)) / math.sqrt(len(fall))


def mean_with_best(state: TrainState) -> Weights:
    """The mean of the last epoch's weights and of all that the best ones are the mean of.

    So a greedy soup (Wortsman et al. 2022, arXiv:2203.05482) is made of what is learnt, as it comes.
    """
    own, share = state.good[0], 1 / (len(state.mean_of) + 1)
    return {k: best.lerp(own[k], share) if best.is_floating_point() else own[k] for k, best in state.best.items()}
