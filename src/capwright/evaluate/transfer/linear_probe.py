"""Linear probe: multinomial logistic regression on vectors of a frozen encoder.

As CLIP's (Radford et al., arXiv 2103.00020, appendix A.3) the L2 weight is chosen on a part of the
training pictures that is held out, by a search that halves its step around the best so far: 1e-6 to
1e6 by factors of 100, then steps of 10, 10^1/2, 10^1/4 and 10^1/8; then all pictures are learned
from. With logits z = W x + b

    loss = mean_n -log softmax(z_n)[y_n] + l2 / (2 N) |W|^2,

which is scikit-learn's with C = 1 / l2 (the biases have no penalty), minimised by L-BFGS from
scipy. Unlike CLIP's, vectors are first brought to mean 0 and deviation 1 in every feature of the
training pictures (`standardise`), so that one search fits encoders of any scale.

Reads and writes nothing. Shapes: N pictures, D features, K classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress

CHUNK = 16_384  # pictures whose logits lie in memory together
COARSE = tuple(range(-6, 7, 2))  # powers of ten
HALVINGS = (1.0, 0.5, 0.25, 0.125)
LEAST_DEVIATION = 1e-6  # of a feature; one that never moves stays at 0


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """What was learned; classes that no training picture has can never be the answer."""

    weights_KD: Tensor
    bias_K: Tensor  # -inf where the class was not learned
    mean_D: Tensor
    deviation_D: Tensor
    l2: float

    def logits(self, vectors_ND: Tensor) -> Tensor:
        """[N, K]."""
        scaled_ND = (vectors_ND - self.mean_D) / self.deviation_D
        return scaled_ND @ self.weights_KD.T + self.bias_K


def learn(
    vectors_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    *,
    seed: int,
    l2: float | None = None,
    held_out: float = 0.1,
    standardise: bool = True,
    iterations: int = 1000,
) -> LinearProbe:
    """Fit a probe; without `l2` it is chosen on a share `held_out` of the pictures.

    Raises CapwrightError where fewer than two classes have pictures.
    """
    present = labels_N.unique()
    if len(present) < 2:
        raise CapwrightError(
            f"a linear probe of {len(labels_N)} pictures of {len(present)} class cannot be "
            "learned: at least two classes need pictures, so take a larger fraction"
        )
    mean_D, deviation_D = _statistics(vectors_ND, standardise)
    scaled_ND = (vectors_ND - mean_D) / deviation_D
    targets_N = torch.searchsorted(present, labels_N)
    if l2 is None:
        l2 = _choose(scaled_ND, targets_N, seed=seed, held_out=held_out, iterations=iterations)
    found = minimised(scaled_ND, targets_N, l2, iterations=iterations)
    width = vectors_ND.shape[1]
    weights_KD = vectors_ND.new_zeros(classes, width)
    bias_K = vectors_ND.new_full((classes,), -math.inf)
    weights_KD[present], bias_K[present] = found[:, :width], found[:, width]
    return LinearProbe(
        weights_KD=weights_KD, bias_K=bias_K, mean_D=mean_D, deviation_D=deviation_D, l2=l2
    )


def minimised(
    vectors_ND: Tensor,
    labels_N: Tensor,
    l2: float,
    *,
    start: Tensor | None = None,
    iterations: int = 1000,
) -> Tensor:
    """The weights and, as the last column, the biases [K, D + 1] that make the loss least.

    `labels_N` must be 0 to K - 1, each at least once. `start` is where the search begins.
    """
    shape = (int(labels_N.max()) + 1, vectors_ND.shape[1] + 1)
    first = np.zeros(shape) if start is None else start.double().cpu().numpy()

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        both = torch.from_numpy(flat.reshape(shape)).to(vectors_ND)
        value, gradient = loss_and_gradient(both, vectors_ND, labels_N, l2)
        return value, gradient.double().cpu().numpy().ravel()

    options = {"maxiter": iterations, "maxfun": 2 * iterations, "gtol": 1e-6, "ftol": 1e-12}
    found = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x.reshape(shape)).to(vectors_ND)


def loss_and_gradient(
    both: Tensor, vectors_ND: Tensor, labels_N: Tensor, l2: float
) -> tuple[float, Tensor]:
    """The loss at `both` = weights and biases [K, D + 1], and its gradient."""
    weights_KD, bias_K = both[:, :-1], both[:, -1]
    gradient = torch.zeros_like(both)
    total = 0.0
    for part_ND, targets_N in zip(vectors_ND.split(CHUNK), labels_N.split(CHUNK), strict=True):
        logs_NK = (part_ND @ weights_KD.T + bias_K).log_softmax(dim=1)
        total -= float(logs_NK.gather(1, targets_N[:, None]).double().sum())
        error_NK = logs_NK.exp()
        error_NK[torch.arange(len(part_ND)), targets_N] -= 1
        gradient[:, :-1] += error_NK.T @ part_ND
        gradient[:, -1] += error_NK.sum(dim=0)
    count = len(vectors_ND)
    gradient /= count
    gradient[:, :-1] += l2 / count * weights_KD
    return total / count + l2 / (2 * count) * float(weights_KD.double().pow(2).sum()), gradient


def _choose(
    vectors_ND: Tensor, labels_N: Tensor, *, seed: int, held_out: float, iterations: int
) -> float:
    """The L2 weight with most hits on pictures held out, then with the least cross-entropy."""
    order_N = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels_N)))
    cut = max(1, round(held_out * len(order_N)))
    held_N, kept_N = order_N[:cut].to(labels_N.device), order_N[cut:].to(labels_N.device)
    kept = labels_N[kept_N].unique()
    if len(kept) < 2:
        return 1.0  # too few pictures to choose with
    tried: dict[float, tuple[float, float]] = {}
    start: Tensor | None = None
    with Progress("linear probe", len(COARSE) + 2 * len(HALVINGS), "fits") as progress:

        def attempt(power: float) -> None:
            nonlocal start
            progress.advance()
            if power in tried or not COARSE[0] <= power <= COARSE[-1]:
                return
            targets_N = torch.searchsorted(kept, labels_N[kept_N])
            start = minimised(
                vectors_ND[kept_N], targets_N, 10**power, start=start, iterations=iterations
            )
            tried[power] = _score(start, vectors_ND[held_N], labels_N[held_N], kept)

        for coarse in reversed(COARSE):  # from the strongest, each a start for the next
            attempt(float(coarse))
        for step in HALVINGS:
            best = max(tried, key=tried.__getitem__)
            attempt(best - step)
            attempt(best + step)
    return float(10 ** max(tried, key=tried.__getitem__))


def _score(both: Tensor, vectors_ND: Tensor, labels_N: Tensor, kept: Tensor) -> tuple[float, float]:
    """Share of hits and mean log probability; a class that was not learned is a miss."""
    known_N = torch.isin(labels_N, kept)
    targets_N = torch.searchsorted(kept, labels_N[known_N])
    logs_NK = (vectors_ND[known_N] @ both[:, :-1].T + both[:, -1]).log_softmax(dim=1)
    hits = int((logs_NK.argmax(dim=1) == targets_N).sum())
    log = float(logs_NK.gather(1, targets_N[:, None]).double().sum())
    return hits / len(labels_N), log / max(1, len(targets_N))


def _statistics(vectors_ND: Tensor, standardise: bool) -> tuple[Tensor, Tensor]:
    if not standardise:
        return torch.zeros_like(vectors_ND[0]), torch.ones_like(vectors_ND[0])
    deviation_D = vectors_ND.std(dim=0, correction=0)
    return vectors_ND.mean(dim=0), deviation_D.clamp(min=LEAST_DEVIATION)
