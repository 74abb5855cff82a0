"""Image-text retrieval on any captioned pictures, as CLIP_benchmark measures it.

Protocol clip-benchmark-retrieval/v1 (docs/protocols/). Every caption is a text of its own that is
right for its own picture alone, also where another picture has the same words.
`text_retrieval_recall@k`: share of pictures with one of their captions among the k nearest texts.
`image_retrieval_recall@k`: share of captions with their picture among the k nearest. A wrong item
as near as the best right one counts as nearer; CLIP_benchmark leaves such ties to chance.
Similarities are made in chunks (retrieval.py), so texts x pictures never lies in memory. The
scenes' own protocol, where equal captions are one text, is retrieval.py.

Reads a CaptionSet. Writes nothing; suite.py is the stage around it.

Shapes: N pictures, T captions, E embedding.
"""

from collections.abc import Iterator
from itertools import islice

from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import CaptionSet
from capwright.evaluate.embeddings import Embeddings
from capwright.evaluate.outcomes import Outcomes
from capwright.evaluate.results import Protocol
from capwright.evaluate.retrieval import nearer_items, recalls_at_ranks, retrieval_outcomes

PROTOCOL = Protocol(name="clip-benchmark-retrieval", version="v1")


def retrieve(
    embeddings: Embeddings, pictures: CaptionSet, *, samples: int | None = None
) -> tuple[dict[str, float], Outcomes]:
    """Recall in both directions over the first `samples` pictures, and what was found of each.

    Raises CapwrightError for a picture without a caption.
    """
    keys: list[str] = []
    texts: list[str] = []
    right: list[list[int]] = []

    def images() -> Iterator[Image.Image]:
        for i in islice(range(len(pictures)), samples):
            item = pictures[i]
            if not item.captions:
                raise CapwrightError(
                    f"picture {item.key!r} of {pictures.name} has no caption: retrieval needs one "
                    "for each, so take it out or give it one"
                )
            keys.append(item.key)
            right.append(list(range(len(texts), len(texts) + len(item.captions))))
            texts.extend(item.captions)
            yield item.image

    total = len(pictures) if samples is None else min(samples, len(pictures))
    images_NE = embeddings.image_embeddings(images(), total, f"retrieval, {pictures.name}")
    to_text_N, to_image_T, weight_T = nearer_items(
        images_NE, embeddings.text_embeddings(texts), right
    )
    return recalls_at_ranks(to_text_N, to_image_T, weight_T), retrieval_outcomes(
        keys, to_text_N, to_image_T, right
    )
