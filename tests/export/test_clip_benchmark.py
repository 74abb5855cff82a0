"""The real `clip_benchmark` measures a checkpoint folder as it is, and gives what we compute.

Evaluation sets are written in its WebDataset form: SPLIT/nshards.txt, SPLIT/0.tar, classnames.txt,
zeroshot_classification_templates.txt, dataset_type.txt. It needs `--model local-dir:FOLDER`;
`--pretrained` is then a mere label in the results.
"""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from capwright.evaluate.results import Result
from capwright.models import towers
from capwright.pretrain.checkpoint import STATE_FILE

CLASSES = ("red bus", "two dogs", "wooden table", "jug of water", "old man")
TEMPLATES = ("a photo of a {c}", "the {c}")
CAPTIONS = ("a red bus", "two dogs", "a table", "the jug", "old man", "water on a table")
# NumPy 2.4 and later refuse what its top-k accuracy does (LAION-AI/CLIP_benchmark, issue 147)
RUN = """
import torch, clip_benchmark.metrics.zeroshot_classification as measured
try:
    measured.accuracy(torch.eye(2), torch.arange(2))
except TypeError:
    def accuracy(output, target, topk=(1,)):
        hit = output.topk(max(topk)).indices == target[:, None]
        return [float(hit[:, :k].any(dim=1).float().mean()) for k in topk]
    measured.accuracy = accuracy
from clip_benchmark.cli import main
main()
"""

pytestmark = pytest.mark.slow


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)) for _ in range(count)
    ]


def write_set(root: Path, images: list[Image.Image], suffix: str, labels: list[str]) -> Path:
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1")
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            picture = io.BytesIO()
            image.save(picture, "PNG")
            for ending, data in (("png", picture.getvalue()), (suffix, label.encode())):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return root


def benchmark(root: Path, checkpoint: Path, task: str, code: str = RUN) -> dict[str, Any]:
    output = root / "result.json"
    arguments = ["--dataset", "wds/tiny", "--dataset_root", str(root), "--task", task]
    arguments += ["--model", f"local-dir:{checkpoint}", "--pretrained", "run-7"]
    arguments += ["--recall_k", "1", "2", "--output", str(output)]
    arguments += ["--batch_size", "5", "--num_workers", "0", "--no_amp"]
    result = subprocess.run(
        [sys.executable, "-c", code, "eval", *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def embeddings(checkpoint: Path, images: list[Image.Image], texts: list[str]) -> Any:
    model, preprocess, tokenizer = towers.load(checkpoint)
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(p) for p in images]))
        text = model.encode_text(tokenizer(texts))
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


def hits(checkpoint: Path, images: list[Image.Image], labels: list[int]) -> torch.Tensor:
    prompts = [template.format(c=name) for name in CLASSES for template in TEMPLATES]
    image, text = embeddings(checkpoint, images, prompts)
    classifier = F.normalize(text.view(len(CLASSES), len(TEMPLATES), -1).mean(dim=1), dim=1)
    right: torch.Tensor = (image @ classifier.T).argmax(dim=1) == torch.tensor(labels)
    return right.float()


RUN_OURS = f"import capwright.models\n{RUN}"


@pytest.mark.parametrize(("kind", "code"), [("plain", RUN), ("ours", RUN_OURS)])
def test_zero_shot_classification(
    kind: str, code: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(kind)
    (checkpoint / STATE_FILE).write_bytes(b"ours alone")  # beside the weights of a real run
    images = pictures(12)
    image, text = embeddings(checkpoint, images, [f"a photo of a {c}" for c in CLASSES])
    labels = (image @ text.T).argmax(dim=1).tolist()  # mostly right, so chance does not pass
    labels[0] = (labels[0] + 1) % len(CLASSES)
    root = write_set(tmp_path / "set", images, "cls", list(map(str, labels)))
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    found = benchmark(root, checkpoint, "zeroshot_classification", code)
    right_N, label_N = hits(checkpoint, images, labels), torch.tensor(labels)
    recall = [float(right_N[label_N == label].mean()) for label in set(labels)]
    assert found["metrics"]["mean_per_class_recall"] == pytest.approx(sum(recall) / len(recall))
    assert found["metrics"]["acc1"] == pytest.approx(float(right_N.mean()))
    assert 0.3 < sum(recall) / len(recall) < 1
    assert found["model"] == f"local-dir:{checkpoint}"
    assert found["pretrained"] == "run-7"
    assert set(found) <= {field.name for field in fields(Result)}  # ours add to theirs


def test_retrieval(plain: Path, tmp_path: Path) -> None:
    images = pictures(len(CAPTIONS))
    image, text = embeddings(plain, images, list(CAPTIONS))
    root = write_set(tmp_path / "set", images, "txt", list(CAPTIONS))
    (root / "dataset_type.txt").write_text("retrieval")
    metrics = benchmark(root, plain, "zeroshot_retrieval")["metrics"]
    scores_TI = text @ image.T
    own = scores_TI.diagonal()
    for k in (1, 2):
        of_text = ((scores_TI > own[:, None]).sum(dim=1) < k).float().mean()
        of_image = ((scores_TI > own[None, :]).sum(dim=0) < k).float().mean()
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(float(of_text))
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(float(of_image))
