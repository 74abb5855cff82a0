"""DataCompDR's files, written here in their published layout, against what they become."""

import gzip
import io
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tiny_teachers
from capwright.captions.runner import Running
from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.corpus import index
from capwright.corpus.index import load_index
from capwright.corpus.sidecars import captions_of, read_sidecars
from capwright.experts import datacompdr
from capwright.experts.datacompdr import DataCompDRConfig
from capwright.pretrain.reinforcement import Reinforcements
from corpus_files import tar_bytes

VIEWS, SYNTHETIC, WIDTHS = 4, 3, (6, 4)
LENIENT = Running(max_failure_rate=1.0)


def embeddings(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([7, number])
    rows = {"image_emb": VIEWS, "text_emb": 1 + SYNTHETIC}
    return {name: rng.standard_normal((n, 10)).astype(np.float16) for name, n in rows.items()}


def augmentations(number: int) -> list[Any]:
    return [[[i, number, 30 - i, 20], [[i % 14, 0.25], [6, 0.27]]] for i in range(VIEWS)]


def sample(number: int, torch_file: bool = False, **changes: Any) -> dict[str, bytes]:
    """The members of a sample by suffix; `changes` replace some, None leaves one out."""
    stored: dict[str, Any] = {
        "url.txt": b"https://example.com/picture",
        "syn.json": {"syn_text": [f"synthetic {k} of {number}" for k in range(SYNTHETIC)]},
        "paug.json": {"param_aug": augmentations(number)},
        "json": {"uid": tiny_teachers.uid(number), "sha256": f"{number:064x}"},
    }
    buffer = io.BytesIO()
    if torch_file:
        tensors = {k: torch.from_numpy(v).bfloat16() for k, v in embeddings(number).items()}
        torch.save(tensors, buffer)
        stored["pth.gz"] = gzip.compress(buffer.getvalue())
    else:
        np.savez(buffer, **embeddings(number))
        stored["npz"] = buffer.getvalue()
    stored |= changes
    return {
        suffix: value if isinstance(value, bytes) else json.dumps(value).encode()
        for suffix, value in stored.items()
        if value is not None
    }


def write(folder: Path, samples: dict[str, dict[int, dict[str, bytes]]]) -> str:
    """Tars of samples; the keys there are not those of the corpus."""
    folder.mkdir(parents=True)
    for name, some in samples.items():
        members = [
            (f"{number + 900:08d}.{suffix}", data)
            for number, one in some.items()
            for suffix, data in one.items()
        ]
        (folder / f"{name}.tar").write_bytes(tar_bytes(members))
    return str(folder)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    tiny_teachers.write_corpus(tmp_path / "corpus", tmp_path / "work")
    return tmp_path / "work"


def run(work: Path, tars: str, **changes: Any) -> tuple[Any, ...]:
    config = DataCompDRConfig(work=work, tars=tars, **{"widths": WIDTHS, **changes})
    return datacompdr.run(config, LENIENT)


@pytest.mark.parametrize("torch_file", [False, True])
def test_both_published_forms_are_joined_by_uid(
    work: Path, tmp_path: Path, torch_file: bool
) -> None:
    """Half of the samples lie in a tar of the shard's name, the others elsewhere."""
    made = {i: sample(i, torch_file) for i in range(12)}
    tars = write(
        tmp_path / "dr",
        {"00000": {i: made[i] for i in range(6)}, "other": {i: made[i] for i in range(6, 12)}},
    )
    reinforced, captions = run(work, tars)
    assert (reinforced.pictures, reinforced.captions, reinforced.reasons) == (12, 12 + 11 + 36, {})
    assert (captions.pictures, captions.captions, captions.kept) == (12, 36, 36)
    table, store = load_index(work), Reinforcements(work, "reinforce")
    assert store.widths == WIDTHS
    for row, key in enumerate(table["key"].to_pylist()):
        number = int(key)
        stored = embeddings(number)
        for i in range(VIEWS):
            image = store.image(row, (i + 0.5) / VIEWS)
            assert image is not None
            assert torch.equal(image, torch.from_numpy(stored["image_emb"][i]).bfloat16())
        texts = [f"alt text {number}", *(f"synthetic {k} of {number}" for k in range(SYNTHETIC))]
        for text, expected in zip(texts, stored["text_emb"], strict=True):
            found = store.text(row, text)
            if number == 1 and text.startswith("alt"):  # it has no alt text
                assert found is None
                continue
            assert found is not None
            assert torch.equal(found, torch.from_numpy(expected).bfloat16())
        assert [one.stored() for one in store.augmentations(row)] == augmentations(number)
    source = captions_of(table, work / "captions" / "datacompdr")
    assert source[0] == [f"synthetic {k} of 0" for k in range(SYNTHETIC)]


def test_samples_without_uid_join_by_key(tmp_path: Path) -> None:
    members = []
    for i in range(2):
        members += [(f"{i + 900:08d}.png", tiny_teachers.picture(i)), (f"{i + 900:08d}.txt", b"a")]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "00000.tar").write_bytes(tar_bytes(members))
    work = tmp_path / "work"
    index.run(index.IndexConfig(corpus=str(tmp_path / "corpus"), work=work))
    tars = write(tmp_path / "dr", {"00000": {i: sample(i) for i in range(2)}})
    run(work, tars)
    store = Reinforcements(work, "reinforce")
    expected = torch.from_numpy(embeddings(1)["text_emb"][3]).bfloat16()
    found = store.text(1, "synthetic 2 of 1")
    assert found is not None
    assert torch.equal(found, expected)


def test_what_is_missing_or_does_not_fit_is_counted_with_its_reason(
    work: Path, tmp_path: Path
) -> None:
    short = {name: rows[:2] for name, rows in embeddings(6).items()}
    buffer = io.BytesIO()
    np.savez(buffer, **short)
    pickled = io.BytesIO()
    np.savez(pickled, image_emb=np.array([{}], object), text_emb=np.array([{}], object))
    some = {
        0: sample(0),
        1: sample(1, **{"syn.json": None}),
        2: sample(2, **{"paug.json": None}),
        3: sample(3, npz=None),
        4: sample(4, npz=b"PK\x03\x04 no archive"),
        5: sample(5, json={"uid": tiny_teachers.uid(5), "sha256": "f" * 64}),
        6: sample(6, npz=buffer.getvalue()),
        7: sample(7, **{"paug.json": {"param_aug": [[[0, 0, 500, 500], []]] * VIEWS}}),
        8: sample(8, **{"paug.json": {"param_aug": "nonsense"}}),
        9: sample(9, npz=pickled.getvalue()),
        10: sample(10, torch_file=True, **{"pth.gz": gzip.compress(b"no tensors")}),
    }
    reinforced, _ = run(work, write(tmp_path / "dr", {"00000": some}))
    assert {k.removeprefix("failed: "): n for k, n in reinforced.reasons.items()} == {
        "no syn.json in the sample": 1,
        "no paug.json in the sample": 1,
        "no npz or pth.gz in the sample": 1,
        "unreadable embeddings: BadZipFile": 1,
        "another picture: the sha256 in the two samples' json differs": 1,
        "another number of image embeddings than of augmentations": 1,
        "a stored crop lies outside the picture, which has another size here": 1,
        "augmentation parameters in another form than DataCompDR's": 1,
        "unreadable embeddings: ValueError": 1,
        "unreadable embeddings: UnpicklingError": 1,
        "no reinforcement with the sample's uid or key": 1,
    }
    rows = read_sidecars(work / "captions" / "datacompdr").to_pylist()
    assert Counter(row["keep"] for row in rows) == {True: 9 * SYNTHETIC, False: 3}


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_the_files_is_run(work: Path, tmp_path: Path) -> None:
    buffer, sprung = io.BytesIO(), tmp_path / "sprung"
    torch.save({"image_emb": Trap(sprung), "text_emb": Trap(sprung)}, buffer)
    trap = {"pth.gz": gzip.compress(buffer.getvalue()), "npz": None}
    some = {i: sample(i, **(trap if i == 4 else {})) for i in range(12)}
    reinforced, _ = run(work, write(tmp_path / "dr", {"00000": some}))
    assert reinforced.reasons == {"failed: unreadable embeddings: UnpicklingError": 1}
    assert not sprung.exists()


def test_failures_above_the_rate_stop_the_stage(work: Path, tmp_path: Path) -> None:
    tars = write(tmp_path / "dr", {"00000": {i: sample(i) for i in range(3)}})
    config = DataCompDRConfig(work=work, tars=tars, widths=WIDTHS)
    with pytest.raises(CapwrightError, match="9 x no reinforcement with the sample's uid"):
        datacompdr.run(config)


def test_other_widths_are_refused_with_what_to_do(work: Path, tmp_path: Path) -> None:
    tars = write(tmp_path / "dr", {"00000": {i: sample(i) for i in range(12)}})
    with pytest.raises(CapwrightError, match=r"\[768, 768\] add up to 1536: give the width"):
        run(work, tars, widths=datacompdr.WIDTHS)
    with pytest.raises(CapwrightError, match=r"widths is \[\]: give the width"):
        DataCompDRConfig(work=work, tars=tars, widths=())


def test_a_tar_that_breaks_off_is_refused(work: Path, tmp_path: Path) -> None:
    tars = write(tmp_path / "dr", {"00000": {i: sample(i) for i in range(12)}})
    path = tmp_path / "dr" / "00000.tar"
    path.write_bytes(zlib.compress(path.read_bytes()))
    with pytest.raises(CapwrightError, match=r"00000.tar is not a whole, uncompressed tar"):
        run(work, tars)


def test_the_command_line(work: Path, tmp_path: Path) -> None:
    tars = write(tmp_path / "dr", {"00000": {i: sample(i) for i in range(12)}})
    place = ["reinforce", str(tmp_path / "corpus"), "--work", str(work), "--from-datacompdr", tars]
    result = CliRunner().invoke(group, [*place, "--set", "widths=[6,4]"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["stage"] for line in lines] == ["reinforce", "datacompdr"]
    result = CliRunner().invoke(group, [*place, "--teacher", "ViT-B-32/openai"])
    assert result.exit_code == 2
    assert "--teacher is given with --from-datacompdr" in result.stderr
