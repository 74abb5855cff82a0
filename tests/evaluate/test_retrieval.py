import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import write_sidecar
from capwright.evaluate.results import read_results
from capwright.evaluate.retrieval import RetrievalConfig, distinct, recalls, run


def brute_force(
    images: torch.Tensor, texts: torch.Tensor, right: Sequence[Sequence[int]]
) -> dict[str, float]:
    near = images.double() @ texts.double().T
    metrics = {}
    for k in (1, 5, 10):
        to_text = [
            bool(set(near[n].argsort(descending=True)[:k].tolist()) & set(own))
            for n, own in enumerate(right)
        ]
        to_image = []
        for own in right:
            for t in own:
                carriers = {n for n, other in enumerate(right) if t in other}
                best = near[:, t].argsort(descending=True)[:k].tolist()
                to_image.append(bool(carriers & set(best)))
        metrics[f"text_retrieval_recall@{k}"] = float(np.mean(to_text))
        metrics[f"image_retrieval_recall@{k}"] = float(np.mean(to_image))
    return metrics


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_recall_equals_brute_force_with_shared_and_several_captions(chunk: int) -> None:
    rng = np.random.default_rng(0)
    captions = [[f"text {rng.integers(25)}" for _ in range(rng.integers(1, 4))] for _ in range(40)]
    texts, right = distinct(captions)
    torch.manual_seed(0)
    images = F.normalize(torch.randn(40, 8), dim=-1)
    vectors = F.normalize(torch.randn(len(texts), 8), dim=-1)
    for n, own in enumerate(right):  # some of the pairs are found
        if n % 2:
            images[n] = F.normalize(images[n] + 2 * vectors[own[0]], dim=-1)
    found = recalls(images, vectors, right, chunk=chunk)
    assert found == pytest.approx(brute_force(images, vectors, right))
    assert 0 < found["text_retrieval_recall@1"] < found["text_retrieval_recall@10"] < 1


def test_equal_texts_are_one_and_right_for_each_of_their_pictures() -> None:
    assert distinct([["a"], ["b", "a"], ["a"]]) == (["a", "b"], [[0], [1, 0], [0]])


def test_an_encoder_that_maps_everything_to_one_point_scores_nothing() -> None:
    same = F.normalize(torch.ones(12, 4), dim=-1)
    assert set(recalls(same, same, [[n] for n in range(12)]).values()) == {0.0}


def test_a_run_writes_the_results(tmp_path: Path, toy_folders, tiny) -> None:
    out = tmp_path / "retrieval.json"
    summary = run(
        RetrievalConfig(checkpoint=None, model=tiny, data=toy_folders["seen"], out=out, seed=3)
    )
    (row,) = read_results(out)
    assert (summary.pictures, summary.texts) == (8, 2)
    assert row.task == "zeroshot_retrieval"
    assert row.metrics == summary.metrics
    assert row.options == {"split": "seen", "captions": "oracle", "pictures": 8, "texts": 2}
    assert (row.pretrained, row.samples_seen, row.seed) == ("random", 0, 3)
    assert row.metrics["text_retrieval_recall@5"] == 1.0  # only two texts to choose from
    assert json.loads(out.read_text())[0]["protocol"] == {"name": "retrieval", "version": "v1"}


def test_pictures_without_a_caption_are_counted_in_the_error(
    tmp_path: Path, toy_folders, tiny
) -> None:
    rows = [{"key": f"{i:09d}", "source": "x", "text": "a thing"} for i in range(5)]
    write_sidecar(tmp_path / "x", "00000", rows)
    config = RetrievalConfig(
        checkpoint=None,
        model=tiny,
        data=toy_folders["seen"],
        captions=tmp_path / "x",
        out=tmp_path / "r.json",
    )
    with pytest.raises(CapwrightError, match=r"3 of 8 pictures in .*seen have no caption"):
        run(config)
