"""Depth loss: the scale-invariant log error of Eigen et al. (arXiv 1406.2283, equation 4), rooted.

loss = sqrt(mean(d^2) - weight * mean(d)^2), d = log pred - log true. With weight 0 it is the RMSE
of log depth; with 1 an error that is the same everywhere costs nothing. The root and 0.5 are what
later depth work settled on.
"""

import torch
from torch import Tensor

FLOOR = 1e-6  # under the root: its gradient is infinite at a perfect prediction


def silog_loss(
    log_pred_BHW: Tensor, true_BHW: Tensor, *, weight: float = 0.5, valid_BHW: Tensor | None = None
) -> Tensor:
    """Scalar loss of log-metre predictions against metres.

    Pixels with true depth 0 or outside `valid_BHW` are left out; without any pixel the loss is 0,
    with a gradient of 0.
    """
    valid = true_BHW > 0 if valid_BHW is None else (true_BHW > 0) & valid_BHW
    if not valid.any():
        return log_pred_BHW.sum() * 0.0
    d = log_pred_BHW[valid] - true_BHW[valid].log()
    return torch.sqrt((d**2).mean() - weight * d.mean() ** 2 + FLOOR)
