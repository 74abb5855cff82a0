"""All captions of a picture as positives: the formula, its gradient, one and two processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.objectives.contrastive import contrastive_loss
from capwright.pretrain.objectives.multi_positive import multi_positive_loss

PICTURES = torch.tensor([0, 0, 1, 2, 2, 2, 4])  # of seven captions; picture 3 has none
TEXTS = torch.tensor([10, 11, 12, 13, 11, 14, 15])  # pictures 0 and 2 share a caption


def unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return F.normalize(values, dim=-1)


def loss_of(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    *,
    first: int = 0,
    pictures: torch.Tensor = PICTURES,
    texts: torch.Tensor = TEXTS,
    group: Group = ALONE,
) -> torch.Tensor:
    samples = torch.arange(first, first + len(image)) + 100
    return multi_positive_loss(
        image, text, pictures, scale, sample_ids_B=samples, text_ids_P=texts, group=group
    )


def reference(image: torch.Tensor, text: torch.Tensor, scale: float) -> float:
    """The formula, one exponential at a time."""
    captions = {i: [t for t in range(7) if PICTURES[t] == i] for i in range(5)}
    says = {i: {int(TEXTS[t]) for t in found} for i, found in captions.items()}
    total, counted = 0.0, 0
    for i, found in captions.items():
        if not found:
            continue
        counted += 1
        for t in found:
            own = math.exp(scale * float(image[i] @ text[t]))
            wrong = sum(
                math.exp(scale * float(image[i] @ text[u]))
                for u in range(7)
                if int(TEXTS[u]) not in says[i]
            )
            other = sum(
                math.exp(scale * float(text[t] @ image[j]))
                for j in range(5)
                if j != i and int(TEXTS[t]) not in says[j]
            )
            total -= (math.log(own / (own + wrong)) + math.log(own / (own + other))) / len(found)
    return total / (2 * counted)


def test_the_loss_is_its_formula() -> None:
    image, text = unit(5, 1), unit(7, 2)
    scale = torch.tensor(6.0, dtype=torch.float64)
    assert loss_of(image, text, scale).item() == pytest.approx(reference(image, text, 6.0), 1e-12)


def test_with_one_caption_a_picture_it_is_info_nce() -> None:
    image, text = unit(5, 3), unit(5, 4)
    scale = torch.tensor(6.0, dtype=torch.float64)
    one_each = loss_of(image, text, scale, pictures=torch.arange(5), texts=torch.arange(5))
    assert one_each.item() == pytest.approx(contrastive_loss(image, text, scale).item(), 1e-12)


def test_every_picture_weighs_the_same() -> None:
    """Saying a caption three times over changes nothing but the number of negatives of others."""
    image, text = unit(2, 5), unit(2, 6)
    scale = torch.tensor(0.0, dtype=torch.float64)  # all equally near: only counting is left
    pairs, ids = torch.tensor([0, 1]), torch.tensor([0, 1])
    plain = loss_of(image, text, scale, pictures=pairs, texts=ids)
    assert plain.item() == pytest.approx(math.log(2))
    thrice = loss_of(
        image, text[[0, 0, 0, 1]], scale,
        pictures=torch.tensor([0, 0, 0, 1]), texts=torch.tensor([0, 1, 2, 3]),
    )  # fmt: skip
    # picture 0 meets one wrong caption, picture 1 three; texts meet one wrong picture each
    expected = (math.log(2) + math.log(2) + math.log(4) + math.log(2)) / 4
    assert thrice.item() == pytest.approx(expected)


def test_gradient() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    image, text = unit(5, 7).requires_grad_(), unit(7, 8).requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (image, text, scale))


def _share(rank: int, meeting: Path, loss: float, image_grad: torch.Tensor) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    group = Group(rank=rank, world=2)
    rows = slice(0, 2) if rank == 0 else slice(2, 5)
    mine = (rows.start <= PICTURES) & (rows.stop > PICTURES)
    image = unit(5, 1)[rows].clone().requires_grad_()
    own = loss_of(
        image,
        unit(7, 2)[mine],
        torch.tensor(6.0, dtype=torch.float64),
        first=rows.start,
        pictures=PICTURES[mine] - rows.start,
        texts=TEXTS[mine],
        group=group,
    )
    own.backward()
    both = own.detach().clone()
    torch.distributed.all_reduce(both)
    assert both.item() / 2 == pytest.approx(loss, abs=1e-12)
    assert image.grad is not None
    assert torch.allclose(image.grad / 2, image_grad[rows], atol=1e-12)
    torch.distributed.destroy_process_group()


def test_two_processes_of_uneven_size_equal_one(tmp_path: Path) -> None:
    image = unit(5, 1).requires_grad_()
    whole = loss_of(image, unit(7, 2), torch.tensor(6.0, dtype=torch.float64))
    whole.backward()
    arguments = (tmp_path / "meeting", whole.item(), image.grad)
    mp.start_processes(_share, arguments, nprocs=2, start_method="fork")
