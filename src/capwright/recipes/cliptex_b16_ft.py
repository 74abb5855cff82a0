"""CLIPTeX: OpenAI's CLIP ViT-B/16, fine-tuned on CC3M with labels of experts on its patch map.

    capwright index data/cc3m/shards --work data/cc3m/work --workers 16
    capwright experts data/cc3m/shards --work data/cc3m/work \\
        --with segmentation=nvidia/segformer-b0-finetuned-ade-512-512 \\
        --with depth=Intel/dpt-large --normals from-depth \\
        --engine ray --workers 8 --gpus-per-worker 1
    torchrun --nproc-per-node 8 -m capwright pretrain cliptex_b16_ft

`data/cc3m/shards` are WebDataset tars as img2dataset writes them. Any experts of those kinds will
do; the paper's were other ones. Look at the licences of weights and of their training data first:
docs/reference/expert-labels.md. The control that counts is CLIP-FT, the same without labels: `--set
'objectives={"contrastive": 1}' --set out=runs/cliptex_b16_control`; and the checkpoint as it was.

Hardware: 8 A100 of 80 GB, 512 pictures a GPU; untested by us on GPUs. The paper has 64 A100. Time,
derived and not measured: about 8 hours without the labelling, 90 million samples (30 passes over
three million pictures that can still be fetched) of 123 GFLOP (three forward passes, by our count;
the heads add 2%) at 48 TFLOP/s a GPU, the pace of MobileCLIP's authors (1.3 hours for 12.8 million
samples of 141 GFLOP on 8 A100, secondary source).

Published: gains of up to 16.3% in probing over CLIP, with zero-shot abilities kept (primary source,
the abstract of arXiv 2310.14108). The tables were not at hand.

30 passes over CC3M are the paper's (primary source). Everything else is ours: weight 1 of every
task, heads, batch, learning rate (small, since the checkpoint is good), decay, warm-up.
"""

from pathlib import Path

from capwright.pretrain.config import (
    Augmentation,
    CaptionSource,
    PretrainConfig,
    PseudoLabelsSettings,
)

BATCH = 4_096


def config() -> PretrainConfig:
    """The recipe's plan."""
    return PretrainConfig(
        out=Path("runs/cliptex_b16_ft"),
        work=Path("data/cc3m/work"),
        captions=(CaptionSource(name="alt"),),
        model="ViT-B-16-quickgelu",  # the activation of OpenAI's weights
        init="ViT-B-16-quickgelu/openai",
        tokenizer="open_clip",
        image_size=224,
        stored_size=256,
        augmentation=Augmentation(crop_area=(0.6, 1.0)),
        objectives={"contrastive": 1.0, "pseudo_labels": 1.0},
        pseudo_labels=PseudoLabelsSettings(label_size=56),  # four times the patch grid
        batch_size=BATCH,
        samples=90_000_000,
        warmup_samples=500 * BATCH,
        learning_rate=1e-5,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        patch_dropout=0.0,
        precision="bf16",
        grad_checkpointing=True,
        checkpoint_samples=9_000_000,
        cache_pixels=False,
        loader_workers=6,
        log_every_steps=20,
    )
