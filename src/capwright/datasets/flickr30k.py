"""Flickr30k with Karpathy's splits: 1,000 pictures to test, 1,014 to validate, 29,000 to train.

Reads dataset_flickr30k.json and flickr30k-images/*.jpg (or flickr30k_images/, images/, Images/).
"""

from capwright.datasets import karpathy

SPLITS = karpathy.SPLITS
_SET = karpathy.KarpathySet(
    name="flickr30k",
    json_name="dataset_flickr30k.json",
    picture_folders=("flickr30k-images", "flickr30k_images", "images", "Images"),
)
load, check = _SET.load, _SET.check
