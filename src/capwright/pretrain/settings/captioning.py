"""Dials of `objectives/captioning.py`."""

from dataclasses import dataclass

from capwright.core.errors import CapwrightError


@dataclass(frozen=True, kw_only=True)
class CaptioningSettings:
    """The decoder, of sizes that are ours; a CoCa model brings its own instead."""

    decoder_width: int = 256
    decoder_layers: int = 2
    decoder_heads: int = 4

    def __post_init__(self) -> None:
        for name in ("decoder_width", "decoder_layers", "decoder_heads"):
            if getattr(self, name) < 1:
                raise CapwrightError(
                    f"captioning.{name} is {getattr(self, name)}: it must be 1 or more"
                )

    def check_together(self) -> None:
        """Checks of several fields, made when the decoder is built: they may change one by one."""
        if self.decoder_width % self.decoder_heads:
            raise CapwrightError(
                f"captioning.decoder_width is {self.decoder_width}: choose a multiple of "
                f"captioning.decoder_heads ({self.decoder_heads})"
            )
