import dataclasses
from pathlib import Path

import numpy as np
import pytest

from capwright.datasets.scenes.captions import MAX_WORDS, alt_text, full_caption
from capwright.datasets.scenes.compose import Composer, Scene
from capwright.datasets.scenes.write import composer_for
from scene_cutouts import make_cutouts


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    folder: Path = make_cutouts(tmp_path_factory.mktemp("cutouts"))
    return composer_for.__wrapped__(64, 0, folder, None, False, None, 3)


def _scenes(composer: Composer, count: int) -> list[Scene]:
    return [composer.compose(np.random.default_rng([5, i])) for i in range(count)]


def test_alt_text_is_as_bad_as_the_web() -> None:
    present, other = ["a red kite", "a stone"], "a grey wagon"
    kinds = {"named": 0, "other": 0, "junk": 0}
    for i in range(3000):
        text = alt_text(np.random.default_rng(i), present, lambda: other)
        if "wagon" in text:
            kinds["other"] += 1
        elif "kite" in text or "stone" in text:
            assert not ("kite" in text and "stone" in text), text
            kinds["named"] += 1
        else:
            kinds["junk"] += 1
    assert kinds["junk"] / 3000 == pytest.approx(1 / 3, abs=0.03)
    assert kinds["other"] / 3000 == pytest.approx(1 / 4, abs=0.03)


def test_another_pictures_text_names_nothing_of_this_one() -> None:
    for i in range(300):
        rng = np.random.default_rng(i)
        text = alt_text(rng, ["a kite"], lambda rng=rng: ["a kite", "an owl"][rng.integers(2)])
        same = alt_text(np.random.default_rng(i), ["a kite"], lambda: "an owl")
        assert ("kite" in text) == ("kite" in same)


def test_the_full_caption_names_everything_in_few_words(composer: Composer) -> None:
    names = [one.name for one in composer.classes]
    for i, scene in enumerate(_scenes(composer, 200)):
        text = full_caption(np.random.default_rng(i), scene, names)
        assert text[0].isupper() and text.endswith(".") and "  " not in text
        assert len(text.split()) <= MAX_WORDS
        for thing in scene.things:
            assert thing.cutout.name in text


def test_in_front_and_behind_follow_depth(composer: Composer) -> None:
    checked = 0
    names = [one.name for one in composer.classes]
    for i, scene in enumerate(_scenes(composer, 300)):
        text = full_caption(np.random.default_rng(i), scene, names)
        if len(scene.things) != 2 or not (" in front of " in text or " behind " in text):
            continue
        far, near = (thing.cutout.name for thing in scene.things)
        if far == near:
            continue
        _, second = sorted((near, far), key=text.index)
        relation = " behind " if " behind " in text else " in front of "
        assert text.rindex(relation) > text.index(second)  # said of the second thing
        assert (second == near) == (relation == " in front of "), text
        checked += 1
    assert checked > 20


def test_sides_follow_the_boxes(composer: Composer) -> None:
    names = [one.name for one in composer.classes]
    scene = next(one for one in _scenes(composer, 50) if len(one.things) == 1)
    for x0, words in ((0, "on the left"), (27, "in the middle"), (54, "on the right")):
        thing = dataclasses.replace(scene.things[0], box=(x0, 20, x0 + 10, 40))
        moved = dataclasses.replace(scene, things=(thing,))
        text = full_caption(np.random.default_rng(0), moved, names)
        assert words in text[0].lower() + text[1:]
