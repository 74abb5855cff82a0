"""The embedded captioner: its parts on planted features, the whole stage on a tiny corpus."""

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capwright.captions.describe import small, small_training
from capwright.captions.describe.concepts import (
    ConceptConfig,
    ConceptHead,
    best_concepts,
    concept_loss,
    label_matrix,
    train_concepts,
)
from capwright.captions.describe.small import DescribeConfig, WritingConfig
from capwright.captions.describe.small_model import (
    HUMAN,
    Captioner,
    DecoderConfig,
    WordCodec,
    concept_tensors,
)
from capwright.captions.describe.small_training import Corpus, TrainingConfig
from capwright.captions.features import record_type
from capwright.captions.lexicon import Lexicon
from capwright.captions.maps import load_maps
from capwright.captions.runner import stage_folder
from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index
from capwright.corpus.sidecars import read_sidecars

TINY: dict[str, Any] = {
    "picture_size": 64,
    "concepts": ConceptConfig(width=16, steps=10, batch_size=16),
    "decoder": DecoderConfig(width=16, layers=1, heads=2, concepts=3, max_tokens=12),
    "training": TrainingConfig(noisy_steps=4, human_steps=6, batch_size=8, evaluate_every_steps=3),
    "writing": WritingConfig(sampled=2, batch_size=16),
}
LEXICON = Lexicon(("bull", "frog", "red kite"))


def planted(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Records in which name n shows as a high channel n of one middle cell, and where it is."""
    rng = np.random.default_rng(0)
    records = np.zeros(count, record_type(64))
    records["middle"] = rng.normal(0, 0.5, records["middle"].shape)
    records["valid"] = True
    names = rng.integers(0, 3, count)
    for row, name in enumerate(names):
        records["middle"][row, name, row % 4, 3 if name else 0] = 40
    return records, names


def test_the_head_finds_names_and_where_they_are_despite_wrong_labels(tmp_path: Path) -> None:
    records, names = planted(120)
    labels = np.eye(3, dtype=bool)[names]
    for row in range(0, 120, 4):
        labels[row] = np.roll(labels[row], 1 + row // 4 % 2)
    config = ConceptConfig(width=16, steps=80, batch_size=32, learning_rate=0.01)
    torch.manual_seed(0)
    head = ConceptHead(3, config)
    train_concepts(head, records, labels, np.zeros(120, bool), config, 0, tmp_path)
    best = best_concepts(head, records, 2)
    assert (best.names[:, 0] == names).mean() > 0.95
    found = best.names[:, 0] == names
    right = best.places[found & (names > 0), 0, 5] > 0.5  # where they were planted
    left = best.places[found & (names == 0), 0, 5] < -0.5
    assert right.mean() > 0.6 and left.mean() > 0.6  # a guess would be right in a quarter


def test_the_loss_counts_a_label_by_how_likely_it_is() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([[False, True, False]])
    config = ConceptConfig(trust_half=0.5, human_weight=3.0)
    p = torch.softmax(logits, -1)[0]
    nll = -float(p[1].log())

    def loss(human: bool, trusting: bool) -> float:
        return float(concept_loss(logits, labels, torch.tensor([human]), config, trusting))

    assert loss(False, True) == pytest.approx(nll)
    assert loss(False, False) == pytest.approx(nll * float(p[1] / p[0]) / 0.5)
    assert loss(True, False) == pytest.approx(3 * nll)


def test_labels_are_the_names_that_texts_mention() -> None:
    labels = label_matrix(["Two frogs - shop", "", "a red kite by a bull"], LEXICON)
    assert labels.tolist() == [[False, True, False], [False] * 3, [True, False, True]]


def test_texts_survive_the_codec_with_capitals_and_marks() -> None:
    human = ["A Red Kite, on the left; an F-22 behind the Red Kite."]
    codec = WordCodec.build(human, [])
    assert codec.decode(codec.encode(human[0], HUMAN, 48)) == human[0]
    assert len(codec.encode(human[0], HUMAN, 5)) == 5


@pytest.fixture
def captioner() -> Captioner:
    torch.manual_seed(0)
    codec = WordCodec.build(["a bull, a frog, a red kite."], [])
    return Captioner(codec, LEXICON, TINY["decoder"]).eval()


def test_training_loss_and_cached_generation_agree(captioner: Captioner) -> None:
    """Greedy words are the likeliest words of the full forward pass, one after the other."""
    records, _ = planted(3)
    best = best_concepts(ConceptHead(3, ConceptConfig()), records, 2)
    with torch.no_grad():
        deep = load_maps(records, np.arange(3)).deep_BMC
        memory = captioner.memory(deep, *concept_tensors(best))
        start = torch.full((3, 1), captioner.codec.id(HUMAN))
        tokens = captioner._generate(start, memory, {"do_sample": False})
        logits = captioner.decoder(tokens[:, :-1], encoder_hidden_states=memory).logits
    likeliest = logits.argmax(-1)
    ended = (tokens[:, :-1] == captioner.codec.id("<end>")).cumsum(1) > 0
    assert torch.equal(likeliest[~ended], tokens[:, 1:][~ended])


def test_padding_changes_no_loss(captioner: Captioner) -> None:
    memory = torch.randn(1, 5, 16)
    tokens = torch.tensor([captioner.codec.encode("a bull.", HUMAN, 12)])
    padded = torch.nn.functional.pad(tokens, (0, 3), value=captioner.codec.id("<pad>"))
    assert captioner.loss(tokens, memory).item() == pytest.approx(
        captioner.loss(padded, memory).item(), rel=1e-5
    )


def test_names_are_exchanged_in_memory_and_caption_alike(captioner: Captioner) -> None:
    human = ["a bull, a frog", "a red kite, a bull", "two geese"]
    records, _ = planted(3)
    corpus = Corpus(records, ["", "", ""], human)
    best = best_concepts(ConceptHead(3, ConceptConfig()), records, 3)
    partners = small_training.exchange_partners(corpus, LEXICON)
    assert {name: list(others) for name, others in partners.items()} == {
        0: [1, 2], 1: [0, 2], 2: [0, 1],
    }  # fmt: skip
    texts = small_training._Texts(captioner, best, corpus, TrainingConfig(swap=1.0), partners)
    rng = np.random.default_rng(0)
    changed = set()
    for _ in range(20):
        caption, names = small_training._exchange(
            texts, "a bull left of rocks", np.array([0, 1]), rng
        )
        assert caption == f"a {LEXICON.names[names[0]]} left of rocks"
        assert names[1] == 1
        changed.add(caption)
    assert changed == {"a bull left of rocks", "a red kite left of rocks"}


def test_mirrored_twice_is_the_same_and_once_exchanges_the_sides() -> None:
    records, _ = planted(2)
    best = best_concepts(ConceptHead(3, ConceptConfig()), records, 2)
    deep = load_maps(records, np.arange(2)).deep_BMC + torch.randn(2, 4, 320)
    some = np.array([True, False])
    once, places = small_training._mirror(deep, best, some)
    twice, back = small_training._mirror(once, places, some)
    assert torch.equal(twice, deep) and np.array_equal(back.places, best.places)
    assert torch.equal(once[0, [1, 0, 3, 2]], deep[0]) and torch.equal(once[1], deep[1])
    assert np.array_equal(places.places[0, :, [0, 5]], -best.places[0, :, [0, 5]])
    assert np.array_equal(places.places[0, :, 1:5], best.places[0, :, 1:5])
    assert small_training.mirror_words("Left of a bull") == "right of a bull"


def test_the_stage_writes_several_captions_a_picture_and_resumes(work: Path) -> None:
    config = DescribeConfig(work=work, **TINY)
    summary = small.run(config)
    assert (summary.pictures, summary.captions) == (48, 48 * 3)
    folder = stage_folder(work, "describe-small")
    rows = read_sidecars(folder).to_pylist()
    assert [row["prompt"] for row in rows[:3]] == ["greedy", "top-p 0.9", "top-p 0.9"]
    assert all(row["text"] for row in rows[::3])
    before = (folder / "00000.parquet").read_bytes()
    (folder / "00000.parquet").unlink()
    again = small.run(config)
    assert again.shards_reused == 1
    assert (folder / "00000.parquet").read_bytes() == before
    with pytest.raises(CapwrightError, match=r"another plan .*writing\.beams 1 -> 2"):
        small.run(dataclasses.replace(config, writing=WritingConfig(sampled=2, beams=2)))


def _describe(work: Path, save_every_s: float) -> None:
    from capwright.captions import training

    torch.set_num_threads(1)
    phase = training.Phase
    small_training.Phase = lambda **k: phase(**{**k, "save_every_s": save_every_s})  # type: ignore
    small.run(DescribeConfig(work=work, **TINY))


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_with_the_same_captions(work: Path, tmp_path: Path) -> None:
    import shutil

    whole = tmp_path / "whole"
    shutil.copytree(work, whole)
    _describe(whole, 0.0)
    process = multiprocessing.get_context("fork").Process(target=_describe, args=(work, 0.0))
    process.start()
    checkpoints = work / "models" / "small-captioner" / "checkpoints"
    deadline = time.monotonic() + 60
    while not list(checkpoints.glob("captioner on noisy*.pt")) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (work / "models" / "small-captioner" / "weights").exists()
    _describe(work, 0.0)
    one, other = (read_sidecars(stage_folder(w, "describe-small")) for w in (whole, work))
    assert digest(one.to_pylist()) == digest(other.to_pylist())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"decoder": DecoderConfig(width=100, heads=3)},
            "decoder.width is 100, but must be a multiple of decoder.heads (3): try 192",
        ),
        (
            {"writing": WritingConfig(top_p=0.0)},
            "writing.top_p is 0.0, but must be above 0 and at most 1: try 0.9",
        ),
    ],
)
def test_options_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CapwrightError) as error:
        DescribeConfig(work=Path("."), **options)
    assert str(error.value) == sentence


def test_without_captions_by_people_the_field_to_set_is_named(work: Path) -> None:
    with pytest.raises(CapwrightError, match=r"0 captions by people, .* --set human_field=NAME"):
        small.run(DescribeConfig(work=work, **TINY, human_field="nothing"))
    assert load_index(work).num_rows == 48
