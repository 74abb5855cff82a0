"""AdamW with weight decay on matrices alone, and the learning rate by samples seen."""

import math
from collections import defaultdict

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from capwright.pretrain.config import PretrainConfig

UNDECAYED = ("positional_embedding", "pos_embed", "cls_token", "class_embedding", "mask_token")


def build_optimizer(module: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train; vectors, scalars and positions are not decayed."""
    found: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            bare = parameter.ndim < 2 or name.rpartition(".")[2] in UNDECAYED
            # the fused kernel takes no mixture of shards and wholes
            found[bare, isinstance(parameter, DTensor)].append(parameter)
    groups = [
        {"params": parameters, "weight_decay": 0.0 if bare else config.weight_decay}
        for (bare, _), parameters in sorted(found.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=1e-6, fused=True
    )


def learning_rate(config: PretrainConfig, samples_seen: int) -> float:
    """Of the step that begins after `samples_seen` samples: linear warm-up, then a cosine to zero.

    The warm-up counts the samples of the step and the cosine does not, as in open_clip, so that
    neither the first nor the last step is idle.
    """
    if samples_seen < config.warmup_samples:
        warm = (samples_seen + config.batch_size) / config.warmup_samples
        return config.learning_rate * min(warm, 1.0)
    total = config.steps * config.batch_size - config.warmup_samples
    done = (samples_seen - config.warmup_samples) / total
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
