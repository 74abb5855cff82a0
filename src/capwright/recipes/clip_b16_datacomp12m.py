"""CLIP ViT-B/16 on DataComp-12M with its alt text: the baseline that better captions have to beat.

    capwright index data/datacomp12m/shards --work data/datacomp12m/work --workers 16
    torchrun --nproc-per-node 8 -m capwright pretrain clip_b16_datacomp12m

`data/datacomp12m/shards` are WebDataset tars of the samples that mlfoundations/DataComp-12M lists,
as img2dataset writes them. With synthetic captions beside the alt text, one of each at every step:

    capwright describe data/datacomp12m/shards --work data/datacomp12m/work --with coca \\
        --set captions=5
    torchrun --nproc-per-node 8 -m capwright pretrain clip_b16_datacomp12m \\
        --set out=runs/clip_b16_captions --set sampling.mode=both --set 'captions=[{"name": "alt"},
        {"name": "coca", "folder": "data/datacomp12m/work/captions/describe-coca"}]'

Hardware: 8 A100 of 80 GB, for which 1,024 pictures a GPU are meant; untested by us on GPUs.
Time, derived and not measured: about 22 hours. MobileCLIP's authors pass 12.8 million samples in
1.3 hours on 8 A100 (secondary source); their step, one picture and two captions, has 141 GFLOP a
sample by our count (three times the forward pass), so a GPU makes 48 TFLOP/s. This run has 245.8
million samples of 123 GFLOP.

Published for this setting (secondary source: notes on arXiv 2311.17049): ImageNet 44.6%, Flickr30k
42.4% (mean R@1), 40.1% over 38 tasks; with the captions of CoCa as above 51.9, 71.8 and 47.8. One
run each, without an interval.

Batch, samples, learning rate, warm-up, beta_2, decay, clipping and checkpointed activations are
those of the authors' script run_datacomp12m.sh (primary source). Ours: bf16 where it has fp16, a
cosine over whole passes where it resamples shards, and the stored size of 256 pixels. The crops are
open_clip's usual ones.
"""

from pathlib import Path

from capwright.pretrain.config import Augmentation, CaptionSource, PretrainConfig

BATCH = 8_192


def config() -> PretrainConfig:
    """The recipe's plan."""
    return PretrainConfig(
        out=Path("runs/clip_b16_datacomp12m"),
        work=Path("data/datacomp12m/work"),
        captions=(CaptionSource(name="alt"),),
        model="ViT-B-16",
        tokenizer="open_clip",
        image_size=224,
        stored_size=256,
        augmentation=Augmentation(crop_area=(0.9, 1.0)),
        objectives={"contrastive": 1.0},
        batch_size=BATCH,
        samples=30_000 * BATCH,
        warmup_samples=1_000 * BATCH,
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        weight_decay=0.2,
        patch_dropout=0.0,
        precision="bf16",
        grad_checkpointing=True,
        checkpoint_samples=1_500 * BATCH,
        cache_pixels=False,
        loader_workers=6,
        log_every_steps=20,
    )
