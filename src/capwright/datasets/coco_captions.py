"""COCO captions with Karpathy's splits: 5,000 pictures to test and to validate, 113,287 to train.

Reads dataset_coco.json and val2014/*.jpg, train2014/*.jpg (or images/val2014/ and so on).
"""

from capwright.datasets import karpathy

SPLITS = karpathy.SPLITS
_SET = karpathy.KarpathySet(
    name="coco-captions", json_name="dataset_coco.json", picture_folders=(".", "images")
)
load, check = _SET.load, _SET.check
