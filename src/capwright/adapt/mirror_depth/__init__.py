"""Mirror depth: "CLIP Can Understand Depth" (arXiv 2402.03251).

Both towers of a CLIP stay frozen. In place of words, s learned vectors, the mirror, go through the
text tower, whose answer z modulates the features of the image tower; a compact decoder makes metres
of them:

    z    = text tower([start] m_1 ... m_s [end]), m from N(0, 0.02)
    F'_l = gamma_l(z) * F_l + beta_l(z)             FiLM (arXiv 1709.07871), at every depth l
    metres = decoder(F'_1 ... F'_4)

z is the same for every picture, so after training FiLM by z is a constant: the arm `constant`
learns gamma and beta themselves, and what the mirror is worth is the difference to it. Other arms:
`prompts` (z of written sentences, not learned), `decoder` (no modulation, a larger decoder with as
many parameters as the mirror's arm), `depthclip` (zero-shot by sentences, arXiv 2207.01077).

    capwright adapt mirror-depth --recipe scenes --checkpoint runs/demo/arms/quality \
        --data runs/demo/work/probe --test-data runs/demo/work/seen --out runs/mirror --seeds 3

A small folder: config, conditions (what gives gamma and beta), model (FiLM and decoder), depthclip,
stage (files and numbers), table.
"""

from capwright.adapt.mirror_depth.config import Config
from capwright.adapt.mirror_depth.stage import Summary, learned_model, run

__all__ = ["Config", "Summary", "learned_model", "run"]
