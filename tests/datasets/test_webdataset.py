import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets import load, webdataset
from set_files import data


def jpeg(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write(root: Path, *, label: str = "1") -> Path:
    """Two tars whose samples have the same key."""
    for shard in range(2):
        write_tar(
            root / f"test/{shard}.tar",
            {"s0000000.cls": label.encode(), "s0000000.jpg": jpeg(200 * shard)},
        )
    (root / "test/nshards.txt").write_text("2")
    (root / "classnames.txt").write_text("cat\ndog\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n{c}\n")
    return root


def test_classes_labels_and_templates(tmp_path: Path) -> None:
    loaded = load("webdataset", write(tmp_path / "pets"))
    assert (loaded.name, loaded.classes) == ("pets", ("cat", "dog"))
    assert loaded.templates == ("a photo of a {c}.", "{c}")
    assert loaded.keys == ("0/s0000000", "1/s0000000")
    assert [item.label for item in loaded] == [1, 1]
    assert loaded[0].image.getpixel((0, 0))[0] < 20 < loaded[1].image.getpixel((0, 0))[0]
    assert pickle.loads(pickle.dumps(loaded))[1].label == 1
    checked = data("check", "webdataset", tmp_path / "pets")
    facts = {"name": "webdataset", "split": "test", "items": 2, "classes": 2}
    assert (checked.code, json.loads(checked.out)) == (0, facts)


def test_captions(tmp_path: Path) -> None:
    write_tar(tmp_path / "test/0.tar", {"a.jpg": jpeg(1), "a.txt": b"A cat.\n\nTwo cats.\n"})
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    loaded = load("webdataset", tmp_path)
    assert loaded[0].captions == ("A cat.", "Two cats.")
    assert webdataset.check(tmp_path) == []


def test_a_label_outside_the_names_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, label="2")
    with pytest.raises(
        CapwrightError, match=r"has the class '2', but classnames\.txt allows 0 to 1"
    ):
        load("webdataset", folder)
    assert "take the classnames.txt that belongs" in webdataset.check(folder)[0]


def test_lost_tars_names_and_members_are_seen(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "test/1.tar").unlink()
    assert "says 2 tars, but 1 are there" in webdataset.check(folder)[0]
    (folder / "zeroshot_classification_templates.txt").write_text("a photo\n")
    assert "1 templates have no {c}" in webdataset.check(folder)[1]
    (folder / "classnames.txt").unlink()
    assert "it gives the class names, one a line" in webdataset.check(folder)[0]
    (folder / "dataset_type.txt").write_text("retrieval")
    assert "has no .txt: a set for retrieval" in webdataset.check(folder)[0]
    (folder / "test/0.tar").write_bytes(b"no tar at all" * 100)
    assert "is a broken tar" in webdataset.check(folder)[0]
    (folder / "test/0.tar").unlink()
    assert "has no test/*.tar" in webdataset.check(folder)[0]
