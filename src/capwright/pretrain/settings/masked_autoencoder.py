"""Dials of `objectives/masked_autoencoder.py`."""

from dataclasses import dataclass

from capwright.core.errors import CapwrightError


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderSettings:
    """How much is hidden, and the decoder that predicts it."""

    masked: float = 0.75  # share of the patches that are hidden and predicted
    decoder_width: int = 96
    decoder_layers: int = 1
    decoder_heads: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise CapwrightError(
                f"masked_autoencoder.masked is {self.masked}: "
                "a share between 0 and 1, 0.75 in the paper"
            )
        for name in ("decoder_width", "decoder_layers", "decoder_heads"):
            if getattr(self, name) < 1:
                raise CapwrightError(
                    f"masked_autoencoder.{name} is {getattr(self, name)}: it must be 1 or more"
                )

    def check_together(self) -> None:
        """Checks of several fields, made when a run starts: they may change one by one."""
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise CapwrightError(
                f"masked_autoencoder.decoder_width is {self.decoder_width}: choose a multiple of 4 "
                f"and of masked_autoencoder.decoder_heads ({self.decoder_heads})"
            )
