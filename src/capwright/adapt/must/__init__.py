"""MUST: "Masked Unsupervised Self-Training for Label-free Image Classification" (Li et al., arXiv
2206.02967).

A CLIP model and the names of the classes are adapted to unlabelled pictures of a set. A teacher,
the moving average of the student, names a weak view of each picture; the student learns the names
that the teacher is sure of from a strong view with hidden patches (losses.py):
    L = L_st + w_fair L_fair + L_mim + w_align L_align
L_fair keeps all classes in use, L_mim predicts the hidden pixels, L_align draws hidden patches to
their picture. The published recipes are recipes/must_*.py.

    capwright adapt must --recipe must_scenes
    torchrun --nproc-per-node 8 -m capwright adapt must --recipe must_imagenet

A small folder: config, losses, masks (hidden patches), student (the model), views (augmentation),
training (the loop), run (files and numbers).
"""

from capwright.adapt.must.config import Config, Weights
from capwright.adapt.must.run import Summary, run

__all__ = ["Config", "Summary", "Weights", "run"]
