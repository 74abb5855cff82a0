"""What the three recipes `mobileclip_s*_reinforced` have in common; it is no recipe itself.

Data: DataComp-12M with the reinforcements that MobileCLIP's authors publish for it.

    capwright index data/datacomp12m/shards --work data/datacomp12m/work --workers 16
    capwright reinforce data/datacomp12m/shards --work data/datacomp12m/work --workers 16 \\
        --from-datacompdr 'data/datacompdr12m/{00000000..00001023}.tar'

`data/datacomp12m/shards` are the pictures and alt texts of mlfoundations/DataComp-12M, with the
`uid` in each sample's json, at the size at which the authors had them: the stored crops are pixels,
and a picture that is too small for its crops fails with that reason. The reinforcements are
apple/DataCompDR-12M (or its bf16 form), licensed CC-BY-NC-ND. Of other corpora `capwright describe`
and `capwright reinforce --teacher …` make the same; then `captions` names the stage of `describe`.

From the authors' scripts (primary source), run_datacompdr12m.sh and a note in run_datacompdr1b.sh:
batch 8,192 for 30,000 steps, learning rate 1e-3, 1,000 steps of warm-up, beta_2 0.95, decay 0.2,
clipping at 1, no CLIP loss (lambda 1) for S0 to S2, teachers' logit scale 100, no patch dropout, no
averaged weights, batch norms of each process alone, activations computed twice. Ours: bf16 where
they have fp16; CLIP's mean and deviation of colours, where their models take pixels from 0 to 1
as they are; dropout and stochastic depth are open_clip's (none).

The published models saw 13 billion samples of DataCompDR-1B: 200,000 steps of 65,536 on 256 A100.
For that `--set batch_size=65536 --set samples=13107200000 --set warmup_samples=65536000`. The paper
adds ema=0.9995 and 2,000 steps of warm-up (secondary source). Index and captions of a billion
pictures have to fit into the memory of every process, which we have not tried.
"""

from pathlib import Path

from capwright.pretrain.config import (
    CaptionSource,
    PretrainConfig,
    ReinforcedSettings,
    Sampling,
)

WORK = Path("data/datacomp12m/work")
BATCH = 8_192


def plan(name: str, model: str) -> PretrainConfig:
    """The plan of one size: run folder `runs/NAME`, and open_clip's name of the model."""
    return PretrainConfig(
        out=Path("runs") / name,
        work=WORK,
        captions=(
            CaptionSource(name="alt"),
            CaptionSource(name="synthetic", folder=WORK / "captions" / "datacompdr"),
        ),
        sampling=Sampling(mode="both"),
        model=model,
        tokenizer="open_clip",
        image_size=256,
        objectives={"reinforced": 1.0},
        reinforced=ReinforcedSettings(distillation=1.0, teacher_scales=(100.0,)),
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
        loader_workers=8,
        log_every_steps=20,
    )
