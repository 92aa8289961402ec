"""Losses as sums over what they count (samples or tokens), so that any split of a batch adds up to the whole.

A loss of one's own, by import path, is a function (output, target) -> tensor: either one number, the mean over
the samples of its batch, as in torch.nn.functional; or one number per sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from distmem import imports
from distmem.errors import TrainingError

IGNORED = -100  # a target that is not counted: torch's default for cross_entropy and nll_loss


class Loss:
    """`weight(target)` counts on the CPU, before the batch runs; `total(output, target)` is the sum of losses."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        self.function = function

    def weight(self, target: Tensor) -> int:
        return len(target)

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum of the losses of a batch; 0 with a gradient of zeros for an empty one."""
        if len(target) == 0:
            return output[:0].sum()
        loss = self.function(output, target)
        if loss.dim() == 0:
            return loss * len(target)
        if len(loss) != len(target):
            raise TrainingError(
                f"the loss gives {tuple(loss.shape)} for {len(target)} samples",
                remedy="return the mean over the samples, or one number per sample",
            )
        return loss.flatten(1).mean(1).sum() if loss.dim() > 1 else loss.sum()


class ClassLoss(Loss):
    """Cross entropy or negative log-likelihood over classes: counts targets other than -100.

    output: (N, C) or (N, ..., C) with the classes last; target: (N) or (N, ...) of integers.
    """

    def weight(self, target: Tensor) -> int:
        if target.dtype in (torch.uint8, torch.bool):
            return target.numel()
        return int((target != IGNORED).sum())

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        if len(target) == 0:
            return output[:0].sum()
        if target.is_floating_point():
            raise TrainingError(
                f"this loss needs class numbers, and the targets are {str(target.dtype).removeprefix('torch.')}",
                remedy="for numbers to predict: loss: mse and metrics: [mae]",
            )
        if output.shape[:-1] != target.shape:
            raise TrainingError(
                f"the model gives {tuple(output.shape)} for targets of {tuple(target.shape)}",
                remedy="the output must have the shape of the target and the classes as its last axis",
            )
        return self.function(_wide(output.flatten(0, -2)), target.flatten())


class LogProbabilityLoss(ClassLoss):
    """Negative log-likelihood; the first batch tells whether the model really ends in log_softmax."""

    seen = False

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        """As ClassLoss. Raises TrainingError for outputs above 0, which no logarithm of a probability is."""
        if not self.seen and len(target):
            self.seen = True
            if output.detach().max() > 1e-3:
                raise TrainingError(
                    f"nll takes log-probabilities, and the model gives up to {output.detach().max():.3g}",
                    remedy="loss: cross_entropy, or end the model in log_softmax",
                )
        return super().total(output, target)


def _cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(scores, target, reduction="sum", ignore_index=IGNORED)


def _nll(log_probabilities: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss(log_probabilities, target, reduction="sum", ignore_index=IGNORED)


def _same_shape(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if output.numel() != target.numel():  # (N, 1) against (N) would broadcast to (N, N) without a word
        raise TrainingError(f"the model gives {tuple(output.shape)} for targets of {tuple(target.shape)}")
    output = _wide(output.reshape(target.shape))
    return output, target.to(output.dtype)


def _wide(scores: Tensor) -> Tensor:
    """float32 in place of a half: the sum of a batch does not fit its 8 or 11 bits."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of each sample, mean over its values: (N)."""
    output, target = _same_shape(output, target)
    return (output - target).square().flatten(1).mean(1) if target.dim() > 1 else (output - target).square()


def bce(output: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of logits, mean over the values of a sample: (N)."""
    output, target = _same_shape(output, target)
    loss = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return loss.flatten(1).mean(1) if loss.dim() > 1 else loss


LOSSES = {
    "cross_entropy": ClassLoss(_cross_entropy),
    "nll": LogProbabilityLoss(_nll),
    "mse": Loss(mse),
    "bce": Loss(bce),
}


def build_loss(name: str) -> Loss:
    """A loss by name or import path. Raises TrainingError."""
    return copy.copy(LOSSES[name]) if name in LOSSES else Loss(imports.find("loss", name, {}, TrainingError))
