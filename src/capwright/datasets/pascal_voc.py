"""Pascal VOC 2012 segmentation: where its files lie, its names; see pascal_voc20 and pascal_voc21.

Reads VOCdevkit/VOC2012/ImageSets/Segmentation/{val,train,trainval}.txt, JPEGImages/*.jpg and
SegmentationClass/*.png, whose palette numbers are 0 = background, 1 to 20 and 255 = border. The
split `trainaug` (10,582 pictures with the labels of SBD) reads trainaug.txt and
SegmentationClassAug/.
"""

from pathlib import Path

from capwright.datasets.label_pictures import Found, first_folder, read_list

SPLITS = ("val", "train", "trainval", "trainaug")
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
WRONG_VALUE = (
    "the labels hold the value {value}, but VOC stores 0 (background) to 20 and 255 (border): take "
    "SegmentationClass as it comes in VOCtrainval_11-May-2012.tar, not SegmentationObject"
)


def find(folder: Path, split: str) -> Found:
    """Pictures and labels of a split's list."""
    root = first_folder(folder, "VOCdevkit/VOC2012", "VOC2012", ".")
    augmented = split == "trainaug"
    labels = first_folder(root, "SegmentationClassAug" if augmented else "SegmentationClass")
    keys = read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    if augmented:  # some lists give `/JPEGImages/2007_000032.jpg /SegmentationClassAug/…`
        keys = [Path(key).stem for key in keys]
    images = first_folder(root, "JPEGImages")
    return (
        {key: images / f"{key}.jpg" for key in keys},
        {key: labels / f"{key}.png" for key in keys if (labels / f"{key}.png").is_file()},
    )
