"""Both towers in ONNX, for any number of pictures or texts at once.

Writes `image.onnx` (`images` float [B, 3, H, W] → `image_embeds` [B, E]), `text.onnx` (`tokens`
int64 [B, L] → `text_embeds` [B, E]) and what prepares their inputs: `open_clip_config.json` and
tokenizer files. Embeddings are not normalised. Each file is run by onnxruntime on two batch sizes
and compared with torch. Towers that train with parallel branches and batch norms (FastViT and
MobileOne: MobileCLIP's) are reparameterised first, which leaves one convolution of each (Vasu et
al., arXiv 2206.04040).

Shapes: B pictures or texts, H and W pixels, L context length, E embedding.
"""

import contextlib
import copy
import logging
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.core.files import write_json
from capwright.export import Written
from capwright.export.source import Source, difference
from capwright.models import towers

NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
EMBED_BYTES = 1_500_000_000  # a file of protobuf holds 2 GiB; larger weights go beside it
BATCHES = (1, 3)  # checked; neither is the batch that the graph was recorded with
FUSABLE = ("reparameterize", "switch_to_deploy", "fuse")  # as timm names it


def require() -> None:
    """Raise CapwrightError unless the packages are there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CapwrightError(
            f"--to onnx needs {', '.join(missing)}, not installed: pip install 'capwright[export]'"
        )


def write(source: Source, folder: Path) -> Written:
    """Write the folder and compare what onnxruntime makes of it with the checkpoint."""
    model, fused = _for_inference(source.model)
    generator = torch.Generator().manual_seed(1)
    size = source.image_size
    images = [torch.randn(n, 3, *size, generator=generator) for n in (2, *BATCHES)]
    tokens = [source.tokens_BL[-n:] for n in (2, *BATCHES)]
    largest = max(
        _tower(folder / "image.onnx", model, source.model, "image", "images", images),
        _tower(folder / "text.onnx", model, source.model, "text", "tokens", tokens),
    )
    write_json(
        folder / towers.CONFIG_FILE,
        {"model_cfg": source.config, "preprocess_cfg": source.preprocess},
    )
    if hasattr(source.tokenizer, "save_pretrained"):
        source.tokenizer.save_pretrained(folder)
    bias = source.model.logit_bias
    return Written(
        load=(
            'import onnxruntime\nimage = onnxruntime.InferenceSession("DIR/image.onnx")\n'
            'text = onnxruntime.InferenceSession("DIR/text.onnx")'
        ),
        largest_difference=largest,
        notes=(
            "Embeddings are not normalised; logits are their cosines times "
            f"{source.model.logit_scale.exp().item():.6g}"
            + (f" plus {bias.item():.6g}." if bias is not None else "."),
            'Tokens come from open_clip.get_tokenizer("local-dir:FOLDER"), the size, mean and '
            "deviation of pictures from open_clip_config.json.",
            *(("The image tower is reparameterised: for inference only.",) if fused else ()),
        ),
    )


class _Tower(nn.Module):
    """One tower as a module with one input."""

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, inputs: Tensor) -> Tensor:
        encode = self.model.encode_image if self.kind == "image" else self.model.encode_text
        embedded: Tensor = encode(inputs, normalize=False)  # CoCa's default is True
        return embedded


def _for_inference(model: Any) -> tuple[Any, bool]:
    """A model with its parallel branches fused, and whether there were any."""
    trunk = getattr(model.visual, "trunk", None)
    if trunk is None or not any(hasattr(m, name) for m in trunk.modules() for name in FUSABLE):
        return model, False
    from timm.utils import reparameterize_model

    model = copy.deepcopy(model)
    model.visual.trunk = reparameterize_model(model.visual.trunk.eval())
    return model, True


def _tower(
    path: Path, model: Any, reference: Any, kind: str, name: str, batches: list[Tensor]
) -> float:
    """Write one tower, recorded on the first batch; largest difference on the others."""
    import onnxruntime

    tower, out = _Tower(model, kind).eval(), f"{kind}_embeds"
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with _quiet():
        torch.onnx.export(
            tower,
            (batches[0],),
            str(path),
            input_names=[name],
            output_names=[out],
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            external_data=size > EMBED_BYTES,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = _Tower(reference, kind).eval()
    differences = []
    with torch.no_grad():
        for batch in batches[1:]:
            (found,) = session.run([out], {name: batch.numpy()})
            differences.append(difference(torch.from_numpy(found), expected(batch)))
    return max(differences)


@contextlib.contextmanager
def _quiet() -> Any:
    """Progress of the exporter to stderr, and its warnings about its own parts nowhere."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
