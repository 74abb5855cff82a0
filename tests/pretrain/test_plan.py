"""The plan before the start: what it counts, what it measures, and that it changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from capwright.corpus.index import load_index
from capwright.pretrain import plan, step_cost
from capwright.pretrain.batches import Batches, pixels_of
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group
from capwright.pretrain.settings.self_distillation import SelfDistillationSettings
from capwright.pretrain.task import Task, find_objective

WORDS: dict[str, int] = {}
CPU = torch.device("cpu")


def tokenize(texts: Any) -> Tensor:
    """Words as they come, from 3; 1 is the start, 2 the end, 0 the rest."""
    rows = []
    for text in texts:
        words = [WORDS.setdefault(word, len(WORDS) + 3) for word in text.split()][:10]
        rows.append(([1, *words, 2] + [0] * 12)[:12])
    return torch.tensor(rows)


@pytest.fixture
def made(work: Path, tmp_path: Path, tiny_config: Any, tiny_model: Any) -> Any:
    """Makes (config, task, batches) on the tiny corpus."""

    def make(world: int = 1, **changes: Any) -> tuple[PretrainConfig, Task, Batches]:
        from capwright.models import towers

        text = {**tiny_model["text_cfg"], "vocab_size": 64, "pool_type": "eos", "eos_id": 2}
        model = {**tiny_model, "text_cfg": text}
        config = tiny_config(work, tmp_path, **{"model": model, **changes})
        torch.manual_seed(0)
        task = Task(towers.build(model), config)
        index = load_index(work)
        sampler = CaptionSampler(index, config.captions, config.sampling)
        rng = np.random.default_rng(0)
        extras = {n: find_objective(n).extras(config, index) for n in config.weights}
        batches = Batches(
            config,
            sampler=sampler,
            pixels=pixels_of(rng.integers(0, 255, (index.num_rows, 16, 16, 3), np.uint8)),
            tokenize=tokenize,
            mean_std=((0.5,) * 3, (0.5,) * 3),
            patches=16,
            views={n: find_objective(n).views(config) for n in config.weights},
            extras={name: extra for name, extra in extras.items() if extra is not None},
            world=world,
        )
        return config, task, batches

    return make


# ---- measured


def test_operations_of_a_linear_layer_are_counted_by_hand() -> None:
    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(10, 20, bias=False)
            self.second = torch.nn.Linear(20, 5, bias=False)

        def losses(self, rows: Tensor, group: Group) -> Any:
            from capwright.pretrain.task import Losses

            return Losses(self.second(self.first(rows).sigmoid()).square().sum(), {})

    found: Any = step_cost.measure(Line(), torch.randn(3, 10), "fp32", CPU)  # type: ignore[arg-type]
    once, twice = 2 * 3 * 10 * 20, 2 * 3 * 20 * 5
    assert found.forward == once + twice
    assert found.backward == once + 2 * twice  # the rows need no gradient, the middle does
    # the rows, the sigmoid's output, and what is squared; no weights
    assert found.kept == 4 * 3 * (10 + 20 + 5)


def test_the_line_through_two_tiny_batches_meets_the_whole_batch(made: Any) -> None:
    config, task, batches = made(objectives={"masked_autoencoder": 1.0}, batch_size=8)
    batch = batches[0]
    whole = step_cost.measure(task, batch, "fp32", CPU)
    found = step_cost.measure_step(
        task, batch, batch.pictures / config.accumulation, config.precision, CPU
    )
    assert found.forward == pytest.approx(whole.forward, rel=1e-9)
    assert found.backward == pytest.approx(whole.backward, rel=1e-9)
    assert found.kept == pytest.approx(whole.kept, rel=0.05)


def test_contrastive_is_near_the_whole_batch(made: Any) -> None:
    config, task, batches = made(batch_size=8)
    batch = batches[0]
    whole = step_cost.measure(task, batch, "fp32", CPU)
    found = step_cost.measure_step(
        task, batch, batch.pictures / config.accumulation, config.precision, CPU
    )
    assert found.forward == pytest.approx(whole.forward, rel=0.2)
    assert found.kept == pytest.approx(whole.kept, rel=0.2)


def test_chosen_pictures_keep_their_captions(made: Any) -> None:
    _, _, batches = made()
    batch = batches[0]
    rows = torch.tensor([5, 0, 3])
    few = step_cost.chosen(batch, rows)
    assert torch.equal(few.images_BV3HH, batch.images_BV3HH[rows])
    for i, row in enumerate(rows.tolist()):
        mine, theirs = few.pair_picture_P == i, batch.pair_picture_P == row
        assert torch.equal(
            few.tokens_UL[few.pair_text_P[mine]], batch.tokens_UL[batch.pair_text_P[theirs]]
        )
    assert len(few.text_ids_U) == len(few.tokens_UL) == len(few.pair_text_P.unique())


def test_tokens_are_counted(made: Any) -> None:
    _, task, _ = made()
    tokens = tokenize(["a b c", "a", "a b c d e f g h i j k l"])
    found = step_cost.count_tokens(task.model, tokens)
    assert (found.captions, found.context) == (3, 12)
    assert found.mean == pytest.approx((5 + 3 + 12) / 3)
    assert found.computed == 12  # one group of three, to the end of the longest
    many = step_cost.count_tokens(task.model, tokenize(["a"] * 500 + ["a b c d e f g h"] * 500))
    assert many.computed == pytest.approx((3 + 10) / 2)  # two groups, each to its own end
    assert step_cost.count_tokens(task.model, tokens[:0]).captions == 0


def test_measuring_changes_nothing(made: Any) -> None:
    weights = {"contrastive": 1.0, "self_distillation": ((0.5, 0.0), (0.5, 1.0))}
    small = SelfDistillationSettings(local_size=8, prototypes=16)
    config, task, batches = made(objectives=weights, self_distillation=small)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    state, random = vars(task.objectives["self_distillation"]).copy(), torch.get_rng_state()
    plan.facts(config, task, batches, device=CPU)
    assert torch.equal(torch.get_rng_state(), random)
    after = task.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert vars(task.objectives["self_distillation"]) == state


# ---- schedules


def test_stretches_have_the_same_objectives(tiny_config: Any, tmp_path: Path) -> None:
    def stretches(**weights: Any) -> list[tuple[int, int]]:
        config = tiny_config(
            tmp_path, tmp_path, batch_size=1, samples=100, warmup_samples=0, objectives=weights
        )
        return plan.active_stretches(config)

    late = ((0.8, 0.0), (0.8, 1.0))
    assert stretches(a=1.0) == [(0, 100)]
    assert stretches(a=1.0, b=late) == [(0, 80), (80, 100)]
    assert stretches(a=((0.0, 1.0), (0.5, 2.0)), b=late) == [(0, 80), (80, 100)]  # a is always on
    assert stretches(a=((0.255, 1.0), (0.255, 0.0)), b=1.0) == [(0, 26), (26, 100)]
    assert stretches(b=late) == [(80, 100)]


def test_a_schedule_costs_only_while_it_lasts(made: Any) -> None:
    late = ((0.5, 0.0), (0.5, 1.0))
    weights = {"contrastive": 1.0, "masked_autoencoder": late}
    config, task, batches = made(objectives=weights, samples=48, batch_size=8)
    first, second = plan.facts(config, task, batches, device=CPU).stretches
    assert (first.first, first.end, second.first, second.end) == (0, 3, 3, 6)
    assert second.flops > 1.1 * first.flops


# ---- said


def test_facts_count_parameters_processes_and_parts(made: Any) -> None:
    config, task, batches = made(freeze=("text",), objectives={"masked_autoencoder": 1.0})
    facts = plan.facts(config, task, batches, device=CPU)
    found = facts.parameters
    assert found.image == sum(p.numel() for p in task.model.visual.parameters())
    assert found.text == sum(p.numel() for p in task.model.text.parameters())
    assert found.rest == 1
    assert found.objectives == sum(p.numel() for p in task.objectives.parameters())
    assert found.trained == found.image + found.objectives
    assert found.trained_bytes == 4 * found.trained
    two = plan.facts(config, task, batches, device=CPU, group=Group(rank=0, world=2))
    assert two.stretches[0].flops == facts.stretches[0].flops  # they share the same batch
    assert two.stretches[0].kept == pytest.approx(facts.stretches[0].kept / 2, rel=0.01)
    parts = plan.facts(replace(config, accumulation=2), task, batches, device=CPU)
    ratio = parts.stretches[0].flops / facts.stretches[0].flops
    assert 1.25 < ratio < 1.45  # one forward pass more, in three
    assert parts.stretches[0].kept < 0.65 * facts.stretches[0].kept


TEXT = """\
pretrain OUT
  model      ViT-B-16 from ViT-B-16/x · 151 M parameters = 86.2 M image tower + 63.4 M text tower \
+ 1.2 M objectives · 63.4 M of them do not train
  samples    1,000,192 = 3,907 steps of 256 · 10.0 passes over 100,000 pictures (12 have no \
caption) · 250,112 are seen
  tokens     18.3 a caption, 9.37 k a step · 12.8 k computed of 39.4 k (context 77)
  objectives contrastive × 1 · masked_autoencoder × 0 at 80%, 1 at 80%
  compute    1.5 TFLOP to 3 TFLOP a step · 7.03 PFLOP in all (measured on a batch of 2)
  memory     about 3.47 GB a process = 604 MB weights + 350 MB gradients + 699 MB optimiser \
+ 598 MB averaged weights + 1.22 GB activations
  runs on    one GPU · bfloat16 · 2 processes (ddp) · each step in 4 parts · activations \
computed twice
  time left  50m00s at the pace so far, without evaluations
  saves      a checkpoint every 12,800 samples, the newest 2 stay · each measured by scenes · \
metrics.jsonl, wandb
  captions · mix
  └─ alt
"""


def test_the_text(tmp_path: Path) -> None:
    config = PretrainConfig(
        out=Path("OUT"),
        work=tmp_path,
        model="ViT-B-16",
        init="ViT-B-16/x",
        samples=1_000_000,
        accumulation=4,
        grad_checkpointing=True,
        ema=0.99,
        trackers=("wandb",),
        objectives={"contrastive": 1.0, "masked_autoencoder": ((0.8, 0.0), (0.8, 1.0))},
    )
    facts = plan.PlanFacts(
        config=config,
        parameters=plan.Parameters(
            image=86_200_000,
            text=63_400_000,
            rest=1,
            objectives=1_200_000,
            trained=87_400_001,
            bytes=604_000_000,
            trained_bytes=349_600_004,
        ),
        pictures=100_000,
        left_out=12,
        mixture=["captions · mix", "└─ alt"],
        tokens=step_cost.Tokens(captions=256, mean=18.3, computed=25.0, context=77),
        stretches=[
            plan.Stretch(first=0, end=3126, flops=1.5e12, kept=0.9e9),
            plan.Stretch(first=3126, end=3907, flops=3e12, kept=1.22e9),
        ],
        device="one GPU",
        products="bfloat16",
        ranks=2,
        samples_seen=250_112,
        seconds=1000.3,
        evaluators=("scenes",),
    )
    assert plan.plan_text(facts) == TEXT
    start = plan.plan_text(replace(facts, samples_seen=0, seconds=0.0))
    assert "time left  unknown until the first steps" in start and "are seen" not in start


def test_the_text_of_a_real_run(made: Any) -> None:
    config, task, batches = made()
    text = plan.plan_text(plan.facts(config, task, batches, device=CPU))
    assert "48 = 6 steps of 8 · 2.1 passes over 23 pictures (1 have no caption)" in text
    assert "captions · mix" in text and "├─ described" in text and "└─ alt" in text
    assert max(map(len, text.splitlines())) < 160


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 "), (7, "7 "), (999, "999 "), (999.7, "1 k"), (1234, "1.23 k"), (86.6e6, "86.6 M"),
     (151e6, "151 M"), (9.9996e5, "1 M"), (1.5e15, "1.5 P")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, said: str) -> None:
    assert step_cost.number(value) == said
