"""How each number is written, which direction is better, and the sentence that sums the run up."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

Arm = Mapping[str, Any]

ARM_NAMES = {
    "alt": "web alt text",
    "quality": "Capwright's captions",
    "scratch": "no pretraining",
    "oracle": "full captions",
    "mae": "masked autoencoder",
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column of the table of arms."""

    key: str  # in results.json
    label: str
    meaning: str
    scale: float = 1.0  # shares are shown as percent
    digits: int = 3
    unit: str = ""
    higher_is_better: bool = True

    def text(self, value: float | None) -> str:
        """The number as it is written everywhere on the page."""
        return f"{value * self.scale:,.{self.digits}f}" if known(value) else "–"

    def change(self, value: float | None, base: float | None) -> tuple[str, str]:
        """The signed difference and `better`, `worse` or `same`, as far as the digits show."""
        if not known(value) or not known(base):
            return "", "same"
        gain = round((value - base) * self.scale, self.digits)
        text = f"{gain:+,.{self.digits}f}".replace("-", "−")
        if gain == 0:
            return text.lstrip("+−"), "same"
        return text, "better" if (gain > 0) == self.higher_is_better else "worse"

    def interval(self, arm: Arm) -> tuple[float, float] | None:
        """The ends of the arm's interval, as stored."""
        ends = arm.get(f"{self.key}_interval")
        if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(map(known, ends)):
            return None
        return float(ends[0]), float(ends[1])


MIOU = Metric(key="miou", label="mIoU", meaning="segmentation, %", scale=100, digits=1)
RMSE = Metric(key="rmse", label="RMSE", meaning="depth", unit="m", higher_is_better=False)
ABSREL = Metric(
    key="absrel_objects", label="AbsRel", meaning="depth, objects", higher_is_better=False
)
MIOU_UNSEEN = Metric(key="miou_unseen", label="mIoU", meaning="unseen, %", scale=100, digits=1)
RMSE_UNSEEN = Metric(
    key="rmse_unseen", label="RMSE", meaning="depth, unseen", unit="m",
    higher_is_better=False,
)  # fmt: skip
RETRIEVAL = Metric(key="retrieval_r1", label="R@1", meaning="retrieval, %", scale=100, digits=1)
ZEROSHOT = Metric(key="zeroshot_acc1", label="Top-1", meaning="zero-shot, %", scale=100, digits=1)
DENSE = (MIOU, RMSE, ABSREL, MIOU_UNSEEN, RMSE_UNSEEN)
METRICS = (*DENSE, RETRIEVAL, ZEROSHOT)
FINETUNED = tuple(replace(metric, key=f"{metric.key}_finetuned") for metric in DENSE)


def known(value: Any) -> TypeGuard[float]:
    """Whether there is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `48 s`, `4 min 10 s`, `2 h 05 min`."""
    if not known(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def headline(arms: Mapping[str, Arm]) -> str:
    """What the better captions bought, in one sentence that stays true when they bought nothing."""
    alt, quality = arms.get("alt"), arms.get("quality")
    if alt is None or quality is None:
        return f"What {len(arms)} {'encoders know' if len(arms) > 1 else 'encoder knows'}"
    phrases, directions = [], []
    for metric, words in ((MIOU, _miou_words), (RMSE, _rmse_words)):
        text, direction = metric.change(quality.get(metric.key), alt.get(metric.key))
        if text:
            phrases.append(words(text.lstrip("+−"), direction))
            directions.append(direction)
    if not phrases:
        return "Better captions: nothing was measured"
    joint = " and " if len(set(directions)) == 1 else ", but "
    return f"Better captions {joint.join(phrases)}"


def _miou_words(amount: str, direction: str) -> str:
    verbs = {"better": "bought", "worse": "cost"}
    if direction == "same":
        return "left segmentation as it was"
    return f"{verbs[direction]} {amount} points of mIoU"


def _rmse_words(amount: str, direction: str) -> str:
    if direction == "same":
        return "left the depth error as it was"
    if direction == "better":
        return f"took {amount} m off the depth error"
    return f"added {amount} m to the depth error"


def summary(results: Mapping[str, Any]) -> list[str]:
    """The sentences under the headline: from what to what, the gap closed, what is doubtful."""
    arms: Mapping[str, Arm] = results["arms"]
    sentences = []
    if {"alt", "quality"} <= arms.keys():
        sentences += _comparison(arms["alt"], arms["quality"])
    recovered = results.get("recovered") or {}
    shares = [
        f"{recovered[metric.key]:.0%} in {metric.label}"
        for metric in (MIOU, RMSE)
        if known(recovered.get(metric.key))
    ]
    if shares:
        sentences.append(
            f"Of the gap between alt text and full captions, {' and '.join(shares)} is closed."
        )
    if "scratch" in arms and known(arms["scratch"].get("miou")):
        sentences.append(
            f"Without pretraining the same probe reaches {MIOU.text(arms['scratch']['miou'])} mIoU."
        )
    return sentences


def _comparison(alt: Arm, quality: Arm) -> list[str]:
    pairs = [
        f"{name} {metric.text(alt[metric.key])} → {metric.text(quality[metric.key])} {unit}"
        for name, metric, unit in (("Segmentation", MIOU, "mIoU"), ("depth RMSE", RMSE, "m"))
        if known(alt.get(metric.key)) and known(quality.get(metric.key))
    ]
    if not pairs:
        return []
    same = alt.get("samples_seen") == quality.get("samples_seen")
    on = ", on the same pictures with the same number of samples seen" if same else ""
    sentences = [f"{', '.join(pairs)}{on}."]
    doubtful = [metric.label for metric in (MIOU, RMSE) if _overlap(metric, alt, quality)]
    if doubtful:
        sentences.append(
            f"The intervals overlap in {' and '.join(doubtful)}: that difference may be chance."
        )
    return sentences


def _overlap(metric: Metric, one: Arm, other: Arm) -> bool:
    first, second = metric.interval(one), metric.interval(other)
    if first is None or second is None:
        return False
    return first[0] <= second[1] and second[0] <= first[1]
