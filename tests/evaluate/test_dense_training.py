from dataclasses import replace

import numpy as np
import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.evaluate.dense_probe import measure
from capwright.evaluate.dense_training import MODES, ProbeRecipe, Schedule, probe

RECIPE = ProbeRecipe(
    train_samples=24,
    test_samples=8,
    label_size=32,
    loss_size=16,
    hidden=16,
    views=2,
    frozen=Schedule(samples=1200, batch=12, learning_rate=1e-2),
    finetuned=Schedule(
        samples=840, batch=12, learning_rate=1e-2, encoder_learning_rate=1e-3, layer_decay=0.75
    ),
    from_scratch=Schedule(
        samples=840, batch=12, learning_rate=1e-2, encoder_learning_rate=1e-3, layer_decay=0.75
    ),
)
SHORT = replace(
    RECIPE,
    from_scratch=replace(RECIPE.from_scratch, samples=36, batch=12),
    frozen=replace(RECIPE.frozen, samples=36),
    finetuned=replace(RECIPE.finetuned, samples=36),
)


@pytest.mark.parametrize("mode", MODES)
def test_a_probe_learns_colours_and_their_distances(mode, encoder, toy_scenes) -> None:
    test = toy_scenes(8, seed=5)
    predicted = probe(encoder, toy_scenes(24), {"seen": test}, RECIPE, mode=mode, seed=0)["seen"]
    metrics = measure(test, predicted)
    assert metrics["segmentation"]["miou"] > 0.6
    # the distances are 1, 4 and 16 metres, so no single guess comes near
    assert metrics["depth"]["absrel_objects"] < 0.45
    assert metrics["depth"]["delta1_objects"] > 0.3
    assert metrics["depth"]["rmse"] < 3.0  # always 4 metres: 3.75


@pytest.mark.parametrize("mode", MODES)
def test_the_encoder_that_was_passed_is_left_bit_identical(mode, encoder, toy_scenes) -> None:
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    probe(encoder, toy_scenes(24), {"seen": toy_scenes(4)}, SHORT, mode=mode, seed=0)
    after = encoder.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in encoder.model.parameters())


def test_fine_tuning_changes_the_prediction_through_the_encoder(encoder, toy_scenes) -> None:
    train, tests = toy_scenes(24), {"seen": toy_scenes(4)}
    still = replace(SHORT.from_scratch, encoder_learning_rate=1e-12)
    one = probe(encoder, train, tests, SHORT, mode="finetuned", seed=0)["seen"]
    frozen = replace(SHORT, from_scratch=still)
    other = probe(encoder, train, tests, frozen, mode="finetuned", seed=0)["seen"]
    assert not np.allclose(one.depth_NLL, other.depth_NLL, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_probe_is_a_function_of_its_seed(mode, encoder, toy_scenes) -> None:
    train, tests = toy_scenes(24), {"seen": toy_scenes(4)}
    torch.manual_seed(99)
    one = probe(encoder, train, tests, SHORT, mode=mode, seed=1)["seen"]
    torch.manual_seed(7)
    same = probe(encoder, train, tests, SHORT, mode=mode, seed=1)["seen"]
    other = probe(encoder, train, tests, SHORT, mode=mode, seed=2)["seen"]
    assert np.array_equal(one.depth_NLL, same.depth_NLL)
    assert np.array_equal(one.seg_NLL, same.seg_NLL)
    assert not np.array_equal(one.depth_NLL, other.depth_NLL)


def test_a_probe_leaves_the_callers_random_state_alone(encoder, toy_scenes) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    probe(encoder, toy_scenes(24), {"seen": toy_scenes(2)}, SHORT, mode="frozen", seed=1)
    assert torch.equal(torch.rand(3), wanted)


def test_features_of_several_layers_are_taken_together(encoder, toy_scenes) -> None:
    both = replace(encoder, layers=(1, 5))
    images = both.normalised(toy_scenes(2).images_NSS3)
    features = both.dense(images)
    assert features.shape == (2, 256, 4, 4)
    torch.testing.assert_close(features[:, 128:], encoder.dense(images))
    predicted = probe(both, toy_scenes(24), {"seen": toy_scenes(2)}, SHORT, mode="frozen", seed=0)
    assert predicted["seen"].seg_NLL.shape == (2, 32, 32)


def test_fresh_weights_have_a_schedule_of_their_own(encoder, toy_scenes) -> None:
    train, tests = toy_scenes(24), {"seen": toy_scenes(4)}
    still = replace(SHORT, finetuned=replace(SHORT.from_scratch, encoder_learning_rate=1e-12))
    named = replace(encoder, pretrained="runs/a")
    fresh, same, kept = (
        probe(one, train, tests, recipe, mode="finetuned", seed=0)["seen"].depth_NLL
        for one, recipe in ((encoder, SHORT), (encoder, still), (named, still))
    )
    assert np.array_equal(fresh, same)
    assert not np.array_equal(fresh, kept)


def test_splits_with_other_classes_are_refused(encoder, toy_scenes) -> None:
    odd = replace(toy_scenes(2), classes=("background", "cats", "dogs"))
    with pytest.raises(CapwrightError) as raised:
        probe(encoder, toy_scenes(4), {"odd": odd}, SHORT, mode="frozen", seed=0)
    assert str(raised.value) == (
        "the split 'odd' has the classes background, cats, dogs, but the training scenes have "
        "background, apples, berries: make both from the same cut-outs"
    )


def test_the_protocol_keeps_its_name_for_its_own_recipe_alone() -> None:
    assert ProbeRecipe().protocol.version == "v1"
    assert RECIPE.protocol.version.startswith("v1-")
    assert RECIPE.protocol != SHORT.protocol


def test_a_schedule_of_less_than_a_batch_is_refused() -> None:
    with pytest.raises(CapwrightError, match="schedule of 10 samples in batches of 50"):
        Schedule(samples=10, batch=50, learning_rate=1e-3)
