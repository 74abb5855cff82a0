"""Contrast: what stands out from its own picture, and what the picture as a whole shows.

GEM's patches (`gem.py`) with another decision, ours. With l_iq the cosine of pixel i and name q
and g_q that of the whole picture's embedding,

    c_iq = l_iq - mean over i of l_iq        what is said here and not everywhere
    z_iq = c_iq + w g_q                      for the names of things

A pixel has the class of its best z, if there c > t s, where s is the deviation of c in the picture;
else it is background. CLIP is trained on captions that name things and seldom what is behind them,
so a background in words loses to every thing; here it needs no words. Names that are near to
every picture gain nothing from it, since they are near to all pixels. Without a class called
background every pixel has the class of its best z.

w and t were chosen on 150 labelled scenes that no result is reported on.

Shapes: B pictures, Q names, K of them of the background (the first ones), H and W.
"""

import torch
from torch import Tensor

from capwright.dense.training_free.gem import features

__all__ = ["features", "settle"]
WHOLE, STANDS_OUT = 4.0, 2.0  # w and t


def settle(logits_BQHW: Tensor, whole_BQ: Tensor, background: int) -> Tensor:
    """Logits of the same shape; the first `background` names get what a thing has to exceed."""
    contrast = logits_BQHW - logits_BQHW.mean(dim=(2, 3), keepdim=True)
    things = contrast + WHOLE * whole_BQ[:, :, None, None]
    if background == 0:
        return things
    things = things[:, background:]
    deviation_B = contrast.flatten(1).std(dim=1)
    best_B1HW, name_B1HW = things.max(dim=1, keepdim=True)
    here_B1HW = contrast[:, background:].gather(1, name_B1HW)
    needed = best_B1HW - here_B1HW + STANDS_OUT * deviation_B[:, None, None, None]
    return torch.cat([needed.expand(-1, background, -1, -1), things], dim=1)
