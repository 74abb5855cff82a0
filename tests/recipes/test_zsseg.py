from pathlib import Path

import pytest

from capwright.adapt.zsseg import Config
from capwright.adapt.zsseg.splits import UNSEEN
from capwright.recipes.load import load_recipe


@pytest.mark.parametrize("name", ["coco_stuff", "voc", "scenes"])
def test_a_recipe_has_a_known_split(name: str) -> None:
    plan = load_recipe(f"zsseg_{name}")
    assert isinstance(plan, Config)
    assert plan.dataset in UNSEEN
    assert plan.weight in plan.weights


def test_the_papers_configuration_of_both_sets() -> None:
    coco, voc = load_recipe("zsseg_coco_stuff"), load_recipe("zsseg_voc")
    assert (coco.schedule.steps, coco.schedule.batch, coco.views.cut) == (60_000, 32, 640)
    assert (voc.schedule.steps, voc.schedule.batch, voc.views.cut) == (20_000, 16, 512)
    assert (coco.prompts.steps, voc.prompts.steps) == (16_000, 3_200)
    assert (coco.weight, voc.weight) == (0.8, 0.7)
    for plan in (coco, voc):
        assert (plan.schedule.learning_rate, plan.schedule.encoder_learning_rate) == (1e-4, 1e-5)
        assert plan.schedule.grad_clip == 0.01
        assert (plan.losses.classes, plan.losses.focal, plan.losses.dice) == (1, 20, 1)


def test_arms_seeds_and_places_are_no_part_of_the_plan() -> None:
    plan = load_recipe("zsseg_scenes").plan()
    assert {"out", "arms", "seeds", "workers"}.isdisjoint(plan)
    assert Path(plan["checkpoint"]).name == "scenes_clip"
