"""Towers: CLIP models from open_clip and timm with dense features, and the frozen ImageNet trunk.

Importing this package registers Capwright's own image towers in timm, so that checkpoints which
name them load with `open_clip.create_model_and_transforms("local-dir:FOLDER")`.
"""

from capwright.models import stem_vit as stem_vit
from capwright.models.mobile import reparameterize as reparameterize
