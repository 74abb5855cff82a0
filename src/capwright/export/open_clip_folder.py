"""An open_clip folder: `open_clip.create_model_and_transforms("local-dir:DIR")`.

Writes `open_clip_config.json`, `open_clip_model.safetensors` and, where the checkpoint has a
tokenizer of its own, that tokenizer's files; open_clip's byte-pair tokenizer comes with open_clip.
The weights are copied, so the difference is 0.
"""

from pathlib import Path

from safetensors.torch import save_file

from capwright.core.files import write_json
from capwright.export import Written
from capwright.export.source import TEXTS, Source, difference
from capwright.models import towers

OURS = (
    "The image tower is Capwright's own: run `import capwright.models` first, which registers it "
    "in timm."
)


def write(source: Source, folder: Path) -> Written:
    """Write the folder and compare what open_clip makes of it with the checkpoint."""
    store(source, folder)
    model, _, tokenizer = towers.load(folder)
    again = Source(model=model, config=source.config, tokenizer=tokenizer)
    assert again.tokens_BL.equal(source.tokens_BL), f"other tokens of {TEXTS}"
    return Written(
        load=(
            ("import capwright.models\n" if source.image_tower_is_ours else "")
            + "import open_clip\n"
            'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIR")\n'
            'tokenizer = open_clip.get_tokenizer("local-dir:DIR")'
        ),
        largest_difference=max(
            difference(again.image_embeddings(), source.image_embeddings()),
            difference(again.text_embeddings(), source.text_embeddings()),
        ),
        notes=(OURS,) if source.image_tower_is_ours else (),
    )


def store(source: Source, folder: Path) -> None:
    """Write the files into the folder, which exists."""
    write_json(
        folder / towers.CONFIG_FILE,
        {"model_cfg": source.config, "preprocess_cfg": source.preprocess},
    )
    weights = {k: v.clone().contiguous() for k, v in source.model.state_dict().items()}
    save_file(weights, folder / towers.WEIGHTS_FILE)
    if hasattr(source.tokenizer, "save_pretrained"):
        source.tokenizer.save_pretrained(folder)
