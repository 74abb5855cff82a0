"""Which device a model works on, by the name that a config gives it."""

import torch

from capwright.core.errors import CapwrightError


def pick_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one; otherwise torch's name of a device, checked."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise CapwrightError(
            f"device {name!r} cannot be used ({reason}): "
            'allowed are "auto", "cpu", "cuda" and "cuda:N" where torch finds that GPU'
        ) from error
    return device
