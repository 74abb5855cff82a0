"""CoCa's second loss: "CoCa: Contrastive Captioners are Image-Text Foundation Models" (Yu et al.,
arXiv 2205.01917).

A decoder reads the picture's patches by cross-attention and, at every place of a caption, the
tokens before it (teacher forcing); it says which token comes next:
    L = - sum_t log P(y_t | y_<t, x) / number of predicted tokens
The mean is over all tokens of all captions of all ranks, as in open_clip's CoCa, so a long caption
says more than a short one. Padding is not predicted, and neither is the first token, which
tokenizers give to every caption. A picture with several captions is asked for each of them.

With a CoCa model its own decoder is trained, on the text tower's features of the tokens, so that
the checkpoint can write; that takes a pass of its own through both towers. Any other tower gets a
light decoder, which is thrown away after training, and the text tower has no part in this loss.

Shapes: B pictures, P (picture, caption) pairs, L context length, M places that predict (M < L),
T predictions, K tokens of the vocabulary, N places that a picture is read at, D features of the
tower, W width of the decoder.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.models.towers import grid
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE, Group, sum_over
from capwright.pretrain.objective import BaseObjective, Features, Terms
from capwright.pretrain.settings.captioning import CaptioningSettings


def pad_id(model: Any) -> int:
    """The number that fills the context after a caption, as far as the text tower knows."""
    tower = model.text
    known = tower.pad_id if hasattr(tower, "pad_id") else tower.config.pad_token_id
    return 0 if known is None else int(known)


def lengths(tokens_PL: Tensor, pad: int) -> Tensor:
    """Tokens of each caption, [P]: all but padding, the run of one number at its end.

    A run of two and more is padding whatever the number: open_clip's SigLIP towers do not know
    theirs. A single one is padding if it is `pad`.
    """
    place_L = torch.arange(1, tokens_PL.shape[1] + 1, device=tokens_PL.device)
    last_P = tokens_PL[:, -1]
    padded_P = (last_P == pad) | (last_P == tokens_PL[:, -2])
    before_P = ((tokens_PL != last_P[:, None]) * place_L).amax(dim=1)
    return before_P.where(padded_P, torch.full_like(before_P, tokens_PL.shape[1]))


def next_tokens(tokens_PL: Tensor, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the decoder reads, what it shall say, and where it is asked (bool): each [P, M]."""
    length_P = lengths(tokens_PL, pad)
    longest = max([2, *length_P.tolist()])
    place_M = torch.arange(1, longest, device=tokens_PL.device)
    return tokens_PL[:, : longest - 1], tokens_PL[:, 1:longest], place_M < length_P[:, None]


def by_picture(value_T: Tensor, asked_PM: Tensor, picture_P: Tensor, pictures: int) -> Tensor:
    """Sums of what was found at the places that are asked, [B], in an order that never changes."""
    value_PM = value_T.new_zeros(asked_PM.shape).masked_scatter(asked_PM, value_T)
    has_BP = picture_P == torch.arange(pictures, device=picture_P.device)[:, None]
    return (has_BP * value_PM.sum(dim=1)).sum(dim=1)


def mean_over_tokens(sum_B: Tensor, tokens_B: Tensor, group: Group = ALONE) -> Tensor:
    """A number whose mean over ranks is the sum over all ranks by the tokens of all ranks."""
    tokens = sum_over(tokens_B.sum(), group)
    return sum_B.sum() * group.world / tokens.clamp(min=1)


class Decoder(nn.Module):
    """A causal transformer with cross-attention; the word table is also the last layer."""

    def __init__(
        self, features: int, vocabulary: int, context: int, settings: CaptioningSettings
    ) -> None:
        super().__init__()
        settings.check_together()
        width = settings.decoder_width
        self.see = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width,
                settings.decoder_heads,
                dim_feedforward=4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)

    def forward(self, patches_BND: Tensor, picture_P: Tensor, tokens_PM: Tensor) -> Tensor:
        """What the decoder thinks at every place, [P, M, W]."""
        seen_PNW = self.see(patches_BND)[picture_P]
        places = tokens_PM.shape[1]
        hidden_PMW = self.token_embedding(tokens_PM) + self.positional_embedding[:places]
        later_MM = nn.Transformer.generate_square_subsequent_mask(places, tokens_PM.device)
        later_MM = later_MM.to(hidden_PMW.dtype)
        for layer in self.layers:
            hidden_PMW = layer(hidden_PMW, seen_PNW, tgt_mask=later_MM, tgt_is_causal=True)
        normed: Tensor = self.norm(hidden_PMW)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """How likely each token of the vocabulary is, [..., K]."""
        return F.linear(hidden, self.token_embedding.weight)


class Objective(BaseObjective):
    """The decoder, unless the model has one; it works on the first view."""

    uses = ("image", "text", "decoder")
    needs = ("patches",)
    private = ("patches",)

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.pad = pad_id(model)
        self.decoder: Decoder | None = None
        if not hasattr(model, "text_decoder"):
            _, _, features = grid(model, config.image_size)
            self.decoder = Decoder(
                features, model.text.vocab_size, model.text.context_length, config.captioning
            )

    def encode(self, model: Any, batch: Batch, shared: Features) -> dict[str, Tensor]:
        """Each picture's sum over the tokens of its captions, how many and how many are right."""
        picture_P, tokens_PL = self._pairs(batch)
        read_PM, say_PM, asked_PM = next_tokens(tokens_PL, self.pad)
        if self.decoder is None:
            # all of the context: the class token of the text tower has its place after the last one
            _, text_PLW = model.text(tokens_PL)
            _, seen_BNW = model.visual(batch.images_BV3HH[:, 0])
            text_PMW = text_PLW[:, : read_PM.shape[1]]
            logits_TK = model.text_decoder(seen_BNW[picture_P], text_PMW)[asked_PM]
        else:
            patches_BND = shared["patches"][:, 0].flatten(2).transpose(1, 2)
            hidden_PMW = self.decoder(patches_BND, picture_P, read_PM)
            logits_TK = self.decoder.logits(hidden_PMW[asked_PM])
        say_T = say_PM[asked_PM]
        loss_T = F.cross_entropy(_at_least_float(logits_TK), say_T, reduction="none")
        found = {
            "loss": loss_T,
            "tokens": torch.ones_like(say_T),
            "right": (logits_TK.argmax(dim=1) == say_T).long(),
        }
        return {
            f"captioning/{name}": by_picture(value_T, asked_PM, picture_P, batch.pictures)
            for name, value_T in found.items()
        }

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """The mean over all predicted tokens of all ranks."""
        tokens_B = features["captioning/tokens"]
        right = mean_over_tokens(features["captioning/right"], tokens_B, group)
        return Terms(
            mean_over_tokens(features["captioning/loss"], tokens_B, group),
            {"accuracy": right},  # share of the tokens that the decoder would have written
        )

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures [P] and captions [P, L]; an empty caption where there is none.

        So every process has a gradient of every parameter, if only zero.
        """
        if len(batch.pair_text_P):
            return batch.pair_picture_P, batch.tokens_UL[batch.pair_text_P]
        empty_1L = batch.tokens_UL.new_full((1, batch.tokens_UL.shape[1]), self.pad)
        return empty_1L.new_zeros(1), empty_1L


def _at_least_float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
