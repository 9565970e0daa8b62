"""Several networks of one architecture that predict together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from imgclf.core.config import ModelConfig
from imgclf.models.registry import Arch


class Ensemble(nn.Module):
    """Returns the logarithm of the members' mean probabilities: images (n, …) to logits (n, classes).

    Deep ensembles: Lakshminarayanan et al. 2017, arXiv:1612.01474.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits (n, classes), whose exponentials sum to 1."""
        answers = torch.stack([member(images).float().log_softmax(1) for member in self.members])
        return answers.logsumexp(0) - math.log(len(self.members))


def assemble(arch: Arch, spec: ModelConfig) -> nn.Module:
    """The fresh network of an architecture, or an ensemble of as many as the spec has members."""
    if spec.members == 1:
        return arch.build(spec)
    return Ensemble(arch.build(replace(spec, members=1)) for _ in range(spec.members))
