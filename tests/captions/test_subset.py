import json
from pathlib import Path

import numpy as np
import pytest

from capwright.captions.select import SelectConfig, run
from capwright.captions.subset import as_bytes, is_in, read_subset, uids_of, write_subset
from capwright.core.errors import CapwrightError
from indexed import write_index, write_scores

UIDS = [f"{number * 0x0123456789ABCDEF0123456789ABCDEF % 2**128:032x}" for number in range(1, 9)]
UIDS[3] = "00" * 15 + "10"
UIDS[5] = "f" * 31 + "0"


def datacomp(uids: list[str]) -> np.ndarray:
    """A subset as DataComp's own baselines make it."""
    halves = [(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids]
    return np.sort(np.array(halves, np.dtype("u8,u8")))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two shards of four pictures; the score of picture i is i / 10."""
    samples = [
        {"key": str(i), "text": f"t{i}", "json": json.dumps({"uid": uid})}
        for i, uid in enumerate(UIDS)
    ]
    work = write_index(tmp_path / "work", {"a": samples[:4], "b": samples[4:]})
    for shard, first in (("a", 0), ("b", 4)):
        rows = [(str(i), "alt", f"t{i}", i / 10) for i in range(first, first + 4)]
        write_scores(work, "score-clip", {shard: rows})
    return work


def test_kept_samples_are_written_as_datacomp_does(work: Path, tmp_path: Path) -> None:
    run(SelectConfig(work=work))  # 0.2 and more
    out = tmp_path / "subset.npy"
    assert write_subset(work, out) == 6
    written = np.load(out)
    assert written.dtype == np.dtype("u8,u8")
    assert (written == datacomp(UIDS[2:])).all()
    assert read_subset(out).tolist() == np.sort(as_bytes(UIDS[2:])).tolist()


def test_only_the_samples_of_a_subset_are_kept(work: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", datacomp([UIDS[0], UIDS[3], UIDS[5], "ab" * 16]))
    summary = run(SelectConfig(work=work, only_uids=tmp_path / "few.npy"))
    assert summary.reasons == {
        "dropped: not in the subset": 5,
        "kept alt: best score": 2,
        "dropped: nothing above 0.2": 1,
    }


def test_membership_at_the_edges() -> None:
    subset = np.sort(as_bytes(UIDS))
    assert is_in([UIDS[3], "", "0" * 32, "f" * 32, UIDS[5]], subset).tolist() == [
        True, False, False, False, True,
    ]  # fmt: skip
    assert not is_in([UIDS[0], ""], as_bytes([])).any()
    assert is_in([], subset).tolist() == []


def test_uids_are_read_with_care() -> None:
    upper = "AB" * 16
    texts = [f'{{"uid": "{upper}"}}', '{"uid": 3}', '["uid"]', '{"uid"', "", '{"uid": "abc"}']
    assert uids_of(texts) == [upper.lower(), "", "", "", "", ""]


def test_errors_say_what_to_do(work: Path, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=r"captions.select has no captions for a, b"):
        write_subset(work, tmp_path / "out.npy")
    with pytest.raises(CapwrightError, match=r"none.npy does not exist: give a .npy file"):
        read_subset(tmp_path / "none.npy")
    np.save(tmp_path / "floats.npy", np.zeros(3))
    with pytest.raises(CapwrightError, match=r'holds float64 \[3\], but must be "u8,u8"'):
        read_subset(tmp_path / "floats.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(CapwrightError, match=r"text.npy is not a .npy file"):
        read_subset(tmp_path / "text.npy")


def test_without_uids_no_subset_can_be_written(tmp_path: Path) -> None:
    work = write_index(tmp_path / "work", {"a": [{"key": "k1"}]})
    write_scores(work, "score-clip", {"a": [("k1", "alt", "t", 0.9)]})
    run(SelectConfig(work=work))
    with pytest.raises(
        CapwrightError, match=r"1 of 1 kept samples of shard a have no uid .* such as 'k1'"
    ):
        write_subset(work, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()
