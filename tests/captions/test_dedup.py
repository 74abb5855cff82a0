import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageEnhance

from capwright.captions import near
from capwright.captions.dedup import DedupConfig, run
from capwright.captions.runner import stage_folder
from capwright.captions.select import SelectConfig
from capwright.captions.select import run as select
from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import facts
from capwright.corpus.sidecars import read_sidecars
from corpus_files import tar_bytes
from indexed import write_index

Rows = dict[str, dict[str, Any]]


def drawn(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """A picture of soft colours with shapes on it; other seeds give other pictures."""
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 256, (rng.integers(2, 7), rng.integers(2, 7), 3), dtype=np.uint8)
    image = Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 7)):
        x, y = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 40))
        right, bottom = x + int(rng.integers(20, 140)), y + int(rng.integers(20, 140))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, right, bottom), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def changed(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """What happens to pictures on their way through the web."""
    width, height = image.size
    small = image.resize((width * 3 // 5, height * 3 // 5), Image.Resampling.BICUBIC)
    yield "resized", jpeg(small)
    yield "recompressed", jpeg(image, 30)
    yield "cropped 2%", jpeg(image.crop((3, 2, width - 3, height - 2)))
    yield "brighter", jpeg(ImageEnhance.Brightness(image).enhance(1.2))


def sample(key: str, data: bytes, text: str = "") -> dict[str, Any]:
    return {"key": key, "text": text, **facts(data)._asdict()}


def found(work: Path, **options: Any) -> Rows:
    run(DedupConfig(work=work, **options))
    rows = read_sidecars(stage_folder(work, "dedup")).to_pylist()
    return {row["key"]: row for row in rows}


def brief(row: dict[str, Any]) -> tuple[bool, str | None, str | None]:
    return row["keep"], row["kind"], row["duplicate_of"]


@pytest.mark.parametrize("agree", [1, 2, 3])
def test_all_pairs_of_near_hashes_are_found(agree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "blocks_that_agree", lambda *_: agree)
    rng = np.random.default_rng(agree)
    hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
    moved = hashes[:200].copy()
    for _ in range(7):
        moved ^= np.uint64(1) << rng.integers(0, 64, 200, dtype=np.uint64)
    u = np.unique(np.concatenate([hashes, moved]))
    apart = near.hamming(u[:, None], u[None])
    wanted = set(zip(*(ends.tolist() for ends in np.nonzero(np.triu(apart <= 6, 1))), strict=True))
    parts = [np.sort(np.stack(pair), 0) for pair in near.near_pairs(u, 6)]
    assert {tuple(pair) for part in parts for pair in part.T.tolist()} == wanted
    assert 50 < len(wanted) < 200  # seven flips of which some undo others; more than six are apart


def test_a_bucket_of_many_costs_no_square() -> None:
    """Two thousand hashes, all within four bits of each other, are joined by few comparisons."""
    base, one = np.uint64(0x5555_5555_5555_5555), np.uint64(1)
    bit = one << np.arange(64, dtype=np.uint64)
    u = np.unique(base ^ (bit[:, None] | bit[None]))
    pairs = list(near.near_pairs(u, 4, window=16))
    tables = 5  # of one block each
    assert len(u) * 16 < sum(len(left) for left, _ in pairs) <= len(u) * 16 * tables
    assert set(near.components(len(u), pairs)) == {0}


def test_thousands_of_equal_hashes_are_one_group(tmp_path: Path) -> None:
    hub = [{"key": str(i), "phash": 0x0F0F_F0F0_5555_AAAA} for i in range(4000)]
    rows = found(write_index(tmp_path, {"a": hub}))
    assert [row["keep"] for row in rows.values()] == [True] + [False] * 3999


def test_components_join_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST_EDGES", 1)
    pairs = [(np.array([i, i + 1]), np.array([i + 1, i + 2])) for i in (0, 6, 1)]
    labels = near.components(10, iter(pairs)).tolist()
    assert len({*labels[:4]}) == 1 and len({*labels[6:9]}) == 1 and len({*labels}) == 5


def test_changed_pictures_are_found_and_no_others(tmp_path: Path) -> None:
    samples, kinds = [], {}
    for seed in range(36):
        image = drawn(seed)
        samples.append(sample(f"{seed}", jpeg(image)))
        for kind, data in changed(image):
            kinds[f"{seed} {kind}"] = kind
            samples.append(sample(f"{seed} {kind}", data))
    rows = found(write_index(tmp_path, {"a": samples[:80], "b": samples[80:]}))
    true = dict.fromkeys(kinds.values(), 0)
    false = 0
    for key, row in rows.items():
        if row["duplicate_of"]:
            same = row["duplicate_of"].split("/")[1].split()[0] == key.split()[0]
            false += not same
            true[kinds.get(key, "brighter")] += same
    assert false == 0
    assert true["resized"] == true["recompressed"] == 36
    assert true["cropped 2%"] >= 35 and true["brighter"] >= 32, true
    assert sum(row["keep"] for row in rows.values()) <= 36 + 5


def test_the_largest_is_kept_then_the_first(tmp_path: Path) -> None:
    image = drawn(1)
    big, small = jpeg(image), jpeg(image.resize((160, 120), Image.Resampling.BICUBIC))
    work = write_index(
        tmp_path,
        {
            "a": [sample("small", small), sample("big", big), sample("other", jpeg(drawn(2)))],
            "b": [sample("big again", big), sample("small again", small)],
        },
    )
    rows = found(work)
    assert {key: brief(row) for key, row in rows.items()} == {
        "small": (False, "near", "a/big"),
        "big": (True, None, None),
        "other": (True, None, None),
        "big again": (False, "exact", "a/big"),
        "small again": (False, "near", "a/big"),
    }
    assert [row["group_id"] for row in rows.values()] == [1, 1, None, 1, 1]
    assert rows["big again"]["distance"] == 0 and rows["big"]["distance"] is None
    assert rows["big"]["reason"] == "kept: largest of its duplicates"
    assert rows["small"]["reason"] == "dropped: near duplicate"


def test_what_is_near_to_none_that_is_kept_stays(tmp_path: Path) -> None:
    """A chain of hashes, each four bits from the last: its ends are not alike."""
    chain = [0x5555_5555_5555_5555 ^ ((1 << 4 * i) - 1) for i in range(5)]
    samples = [{"key": str(i), "phash": value, "width": 100 - i} for i, value in enumerate(chain)]
    rows = found(write_index(tmp_path, {"a": samples}))
    assert [brief(row)[2] for row in rows.values()] == [None, "a/0", None, "a/2", None]
    assert [row["distance"] for row in rows.values()] == [None, 4, None, 4, None]


def test_pictures_of_one_colour_are_near_to_nothing(tmp_path: Path) -> None:
    colours = [(0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 0, 0)]
    plain = [jpeg(Image.new("RGB", (64, 64), colour)) for colour in colours]
    samples = [sample(str(i), data) for i, data in enumerate(plain)]
    rows = found(write_index(tmp_path, {"a": samples}))
    assert [brief(row)[1] for row in rows.values()] == [None, None, None, "exact"]


def test_pictures_of_an_evaluation_set_are_found(tmp_path: Path) -> None:
    image, other = drawn(3), drawn(4)
    resized = jpeg(image.resize((200, 150), Image.Resampling.BICUBIC))
    evaluation = write_index(
        tmp_path / "eval", {"e": [sample("x", jpeg(drawn(5))), sample("y", resized)]}
    )
    work = write_index(
        tmp_path / "work",
        {
            "a": [
                sample("near", jpeg(image)), sample("exact", resized), sample("fine", jpeg(other)),
                sample("fine too", jpeg(other, 40)),
            ]
        },
    )  # fmt: skip
    rows = found(work, against=evaluation)
    assert {key: brief(row) for key, row in rows.items()} == {
        "near": (False, "evaluation", "e/y"),
        "exact": (False, "evaluation", "e/y"),
        "fine": (True, None, None),
        "fine too": (False, "near", "a/fine"),
    }
    summary = select(SelectConfig(work=work, rank=""))
    assert summary.reasons["dropped: in the evaluation set"] == 2
    with pytest.raises(CapwrightError, match=r"another plan .*against"):
        run(DedupConfig(work=work))


def test_equal_texts_are_counted_and_dropped_if_asked_for(tmp_path: Path) -> None:
    one, two = jpeg(drawn(6)), jpeg(drawn(7))
    work = write_index(
        tmp_path,
        {
            "a": [
                sample("1", one, "A dog."),
                sample("2", one, "a  Dog"),
                sample("3", two, "a dog"),
            ],
            "b": [sample("4", jpeg(drawn(8)), "a dog"), sample("5", jpeg(drawn(9)), "")],
        },
    )
    rows = found(work)
    assert [row["text_copies"] for row in rows.values()] == [2, 2, 2, 2, 0]
    assert [row["keep"] for row in rows.values()] == [True, False, True, True, True]
    (work / "captions" / "dedup").rename(tmp_path / "before")
    rows = found(work, max_same_text=2)
    assert brief(rows["4"]) == (False, "text", "a/1")
    assert [row["keep"] for row in rows.values()] == [True, False, True, False, True]


def test_a_killed_run_goes_on_with_the_same_result(tmp_path: Path) -> None:
    data = [jpeg(drawn(10)), jpeg(drawn(10), 50), jpeg(drawn(11))]
    samples = [sample(str(i), some) for i, some in enumerate(data)]
    work = write_index(tmp_path, {"a": samples, "b": [{**samples[1], "key": "x"}]})
    whole = found(work)
    (work / "captions" / "dedup" / "b.parquet").unlink()
    assert found(work) == whole
    assert brief(whole["x"]) == (False, "near", "a/0")


def test_the_command_finds_and_select_drops(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", jpeg(drawn(i % 2), 60 + i)) for i in range(4)]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "s.tar").write_bytes(tar_bytes(members))
    arguments = ["dedup", str(corpus), "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["pictures"], summary["kept"]) == (4, 2)
    assert summary["reasons"]["dropped: near duplicate"] == 2
    result = CliRunner().invoke(group, [*arguments, "--with", "embeddings"])
    assert result.exit_code == 2 and "embeddings need a model" in result.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"way": "guess"}, "way is 'guess', but must be hash or embeddings"),
        ({"max_distance": 20}, "max_distance is 20, but must be from 0 to 16: try 6"),
        ({"model": "x"}, "the way is hash and the model 'x', but embeddings need a model"),
        ({"min_similarity": 0.0}, "min_similarity is 0.0, but must be above 0 and at most 1"),
        ({"max_same_text": 0}, "max_same_text is 0, but must be at least 1, or null for all"),
    ],
)
def test_errors_say_what_is_allowed(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CapwrightError) as error:
        DedupConfig(work=Path("."), **options)
    assert str(error.value).startswith(sentence)


def test_a_work_folder_without_an_index_is_named(tmp_path: Path) -> None:
    work = write_index(tmp_path / "work", {"a": [{"key": "1"}]})
    with pytest.raises(CapwrightError, match="none has no index: run `capwright index"):
        run(DedupConfig(work=work, against=tmp_path / "none"))
    assert not stage_folder(work, "dedup").exists()
