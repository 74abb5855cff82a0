"""The self-training of MUST: pseudo-labels of the teacher, losses, a step, the teacher follows.

The teacher is an exponential moving average of the student, classifier included; its momentum rises
in a line. Writes OUT/state.pt (student, teacher, optimiser, mean prediction, step) and
OUT/metrics.jsonl; a run that is cut off goes on with the numbers of one that was not. SIGTERM ends
the step in hand, writes the state and raises `signals.Stopped`.

Shapes: B pictures of this process, S pixels a side, h and w patches, C classes.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from capwright.adapt.must import losses
from capwright.adapt.must.config import Config
from capwright.adapt.must.student import Seen, Student, parameter_groups
from capwright.adapt.must.views import RankBatches, stacked
from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.core.run_folder import MetricsLog
from capwright.evaluate.transfer.loop import STATE, State
from capwright.pretrain import distributed, draws, parallel, signals
from capwright.pretrain.distributed import Group
from capwright.pretrain.ema import follow
from capwright.pretrain.loading import in_steps
from capwright.pretrain.precision import arithmetic, attention_kernel

RUNNING = ("out", "device", "workers", "save_every", "test_every")  # change no number of the end
LOOKED_AT = 10  # steps between two looks at the losses: each waits for the device

Normalise = Callable[[Tensor], Tensor]  # uint8 [B, S, S, 3] -> [B, 3, S, S]


class Pair(nn.Module):
    """All that a state holds: the student, its teacher and the mean prediction."""

    log_mean_C: Tensor

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("log_mean_C", torch.zeros(len(student.classifier)))


def plan_of(config: Config) -> dict[str, object]:
    """What the numbers of a run depend on."""
    return {name: value for name, value in as_dict(config).items() if name not in RUNNING}


def terms(
    seen: Seen,
    teacher_logits_BC: Tensor,
    images_B3SS: Tensor,
    hidden_Bhw: Tensor | None,
    earlier_C: Tensor | None,
    config: Config,
    group: Group,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """(losses with a weight, by name; log mean prediction for the next step)."""
    weights, found, mean_C = config.weights, {}, None
    labels_B, sure_B = losses.pseudo_labels(teacher_logits_BC, config.threshold)
    if weights.self_training:
        found["self_training"] = losses.self_training_loss(seen.logits_BC, labels_B, sure_B, group)
    if weights.fairness:
        kept = config.kept(seen.logits_BC.shape[1])
        found["fairness"], mean_C = losses.fairness_loss(seen.logits_BC, earlier_C, kept, group)
    if weights.masked_image:
        assert seen.pixels_B3SS is not None and hidden_Bhw is not None
        found["masked_image"] = losses.masked_image_loss(
            seen.pixels_B3SS, images_B3SS, hidden_Bhw, group
        )
    if weights.alignment:
        assert seen.patches_BPE is not None and hidden_Bhw is not None
        found["alignment"] = losses.alignment_loss(
            seen.patches_BPE, seen.pictures_BE, hidden_Bhw.flatten(1), group
        )
    found["sure"] = losses.share(sure_B, group).detach()
    return found, mean_C


def total(found: dict[str, Tensor], config: Config) -> Tensor:
    """The weighted sum."""
    weights = as_dict(config.weights)
    return torch.stack([weights[n] * v for n, v in found.items() if n in weights]).sum()


class Trainer:
    """One run."""

    def __init__(
        self, pair: Pair, source: RankBatches, normalise: Normalise, config: Config, group: Group
    ) -> None:
        self.pair, self.source, self.normalise = pair, source, normalise
        self.config, self.group = config, group
        self.device = next(pair.parameters()).device
        self.pictures = len(source.numbers)
        self.steps = max(1, config.epochs * self.pictures // config.batch)
        if group.world > 1 and not (config.weights.self_training or config.weights.fairness):
            raise CapwrightError(
                "weights.self_training and weights.fairness are both 0, so the classifier does not "
                f"learn, which {group.world} processes cannot do together: start one process"
            )
        self.wrapped = parallel.wrap(pair.student, "ddp", group)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(
                pair.student, layer_decay=config.layer_decay, weight_decay=config.weight_decay
            ),
            lr=config.learning_rate,
        )
        self.state = State(config.out / STATE, pair, self.optimizer, digest(plan_of(config)))

    def epoch(self, step: int) -> int:
        """Full passes before a step."""
        return step * self.config.batch // self.pictures

    def tested(self, done: int) -> bool:
        """Whether the teacher is measured after so many steps."""
        every = self.config.test_every
        before, after = self.epoch(done - 1) // every, self.epoch(done) // every
        return after > before or done == self.steps

    def run(self, measure: Callable[[int], None]) -> None:
        """Train to the end; `measure(steps done)` is called where `tested` says so."""
        config, start = self.config, self.state.read()
        forked = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=forked),
            signals.watch() as asked,
            MetricsLog(config.out / "metrics.jsonl") as log,
            Progress("MUST", self.steps, "steps", start) as progress,
        ):
            steps = range(start, self.steps)
            for step, views in in_steps(self.source, steps, config.workers):
                torch.manual_seed(draws.step_seed(config.seed, step, self.group.rank))
                found, done, note = self._step(step, *stacked(views)), step + 1, ""
                if done % LOOKED_AT == 0 or done == self.steps:
                    note = self._look(found, done, log)
                if self.tested(done):
                    measure(done)
                progress.advance(note=note)
                stop = self._asked_anywhere(bool(asked)) and done < self.steps
                if done % config.save_every == 0 or self.tested(done) or stop:
                    self._save(done)
                if stop:
                    raise signals.Stopped(done * config.batch, str(self.state.path))

    def _step(
        self, step: int, weak_BSS3: Tensor, strong_BSS3: Tensor, hidden_Bhw: Tensor
    ) -> dict[str, Tensor]:
        config, pair = self.config, self.pair
        weak_B3SS, strong_B3SS = (
            self.normalise(pixels.to(self.device)) for pixels in (weak_BSS3, strong_BSS3)
        )
        hidden = hidden_Bhw.to(self.device) if config.weights.masks else None
        pair.student.train()
        pair.teacher.eval()
        with arithmetic(config.precision, self.device):
            with torch.no_grad():
                teacher_logits_BC = pair.teacher(weak_B3SS).logits_BC
            seen = self.wrapped(strong_B3SS, hidden)
        fresh = step == 0 or self.epoch(step) > self.epoch(step - 1)
        found, mean_C = terms(
            seen, teacher_logits_BC, strong_B3SS, hidden,
            None if fresh else pair.log_mean_C, config, self.group,
        )  # fmt: skip
        loss = total(found, config)
        self.optimizer.zero_grad(set_to_none=True)
        with attention_kernel(config.precision, self.device):
            loss.backward()
        rate = config.rate(step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        follow(pair.teacher, pair.student, config.teacher_momentum(step))
        if mean_C is not None:
            pair.log_mean_C.copy_(mean_C)
        return found | {"loss": loss.detach()}

    def _look(self, found: dict[str, Tensor], done: int, log: MetricsLog) -> str:
        values = {name: float(value.detach()) for name, value in found.items()}
        if not all(map(math.isfinite, values.values())):
            raise CapwrightError(f"the losses are {values} at step {done}: lower learning_rate")
        if self.group.leads:
            rate = self.config.rate(done - 1, self.steps)
            log.write(step=done, rate=rate, **values)
        return f"loss {values['loss']:.3f}, sure {values['sure']:.0%}"

    def _asked_anywhere(self, asked: bool) -> bool:
        if self.group.world == 1:
            return asked
        flag = torch.tensor([int(asked)], device=self.device)
        return bool(distributed.sum_over(flag, self.group) > 0)

    def _save(self, done: int) -> None:
        if self.group.leads:
            self.state.write(done)
        distributed.barrier(self.group)
