"""One model's vectors of pictures and texts, each distinct one computed once.

Pictures go through the model's own preprocessing, in threads, while the model works on the batch
before. They are known by a hash of their pixels and texts by their words, so two tasks on the same
pictures share the work, also under different names. What is kept is E floats an item. Reads and
writes nothing.

Shapes: N pictures, T texts, E embedding, B batch, S the tower's side.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from capwright.core.progress import Progress
from capwright.core.reading import in_order
from capwright.evaluate.encoder import Encoder, batched
from capwright.models import towers

TEXT_BATCH = 256


class Embeddings:
    """Unit vectors of an encoder, on the processor, whatever device the model is on."""

    def __init__(self, encoder: Encoder, *, batch: int = 64) -> None:
        self.encoder = encoder
        self.computed = 0  # pictures that went through the model
        self._batch = batch
        self._device = next(encoder.model.parameters()).device
        self.preprocess: Callable[[Image.Image], Tensor] = image_transform_v2(
            PreprocessCfg(**encoder.model.visual.preprocess_cfg), is_train=False
        )
        self._images: dict[bytes, Tensor] = {}
        self._texts: dict[str, Tensor] = {}

    def image_embeddings(
        self, pictures: Iterable[Image.Image], total: int, label: str = "pictures"
    ) -> Tensor:
        """[N, E]; the pictures are taken one after the other and never lie in memory together."""
        keys: list[bytes] = []
        fresh: dict[bytes, Tensor] = {}
        with Progress(label, total, "pictures") as progress:
            for key, pixels_3SS in self._prepared(pictures):
                keys.append(key)
                if pixels_3SS is not None and key not in self._images:
                    fresh[key] = pixels_3SS
                if len(fresh) == self._batch:
                    self._embed(fresh)
                    fresh.clear()
                progress.advance()
            self._embed(fresh)
        return torch.stack([self._images[key] for key in keys])

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """[T, E]."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._texts]
        fresh.sort(key=len)  # texts of one length make batches without padding
        self.encoder.model.eval()
        for part in batched(fresh, TEXT_BATCH):
            tokens_BL = self.encoder.tokenizer(list(part)).to(self._device)
            vectors_BE = towers.encode_text(self.encoder.model, tokens_BL)
            self._texts |= zip(part, F.normalize(vectors_BE, dim=-1).cpu(), strict=True)
        return torch.stack([self._texts[text] for text in texts])

    @torch.no_grad()
    def _embed(self, fresh: dict[bytes, Tensor]) -> None:
        if not fresh:
            return
        self.encoder.model.eval()
        images_B3SS = torch.stack(list(fresh.values())).to(self._device)
        vectors_BE = F.normalize(towers.encode_image(self.encoder.model, images_B3SS), dim=-1)
        self._images |= zip(fresh, vectors_BE.cpu(), strict=True)
        self.computed += len(fresh)

    def _prepared(self, pictures: Iterable[Image.Image]) -> Iterator[tuple[bytes, Tensor | None]]:
        """Key and pixels in the order of the pictures, up to two batches ahead."""
        return in_order(self._prepare, pictures, ahead=2 * self._batch)

    def _prepare(self, picture: Image.Image) -> tuple[bytes, Tensor | None]:
        picture = picture.convert("RGB")
        content = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
        content.update(picture.tobytes())
        key = content.digest()
        return key, None if key in self._images else self.preprocess(picture)
