"""Words of classes and their vectors."""

import pytest
import torch
import torch.nn.functional as F

from capwright.core.errors import CapwrightError
from capwright.dense.words import TEMPLATES, Vocabulary, best_name, parse_classes, text_vectors


def test_there_are_80_templates_with_one_place_each() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_commas_part_classes_and_bars_names() -> None:
    vocabulary = parse_classes(" dog | puppy, green grass,sky ")
    assert vocabulary.classes == (("dog", "puppy"), ("green grass",), ("sky",))
    assert vocabulary.class_of_Q == [0, 0, 1, 2]


@pytest.mark.parametrize("text", ["dog", "", "dog, |"])
def test_words_that_are_no_choice(text: str) -> None:
    with pytest.raises(CapwrightError, match=r"at least two|empty name"):
        parse_classes(text)


def test_a_vector_is_the_unit_mean_over_templates() -> None:
    table = {
        "a dog": torch.tensor([1.0, 0.0]), "the dog": torch.tensor([0.0, 1.0]),
        "a cat": torch.tensor([1.0, 0.0]), "the cat": torch.tensor([1.0, 0.0]),
    }  # fmt: skip
    vectors = text_vectors(
        lambda texts: torch.stack([table[text] for text in texts]),
        Vocabulary(classes=(("dog",), ("cat",))),
        ("a {}", "the {}"),
    )
    expected = torch.stack([F.normalize(torch.tensor([0.5, 0.5]), dim=0), torch.tensor([1.0, 0])])
    torch.testing.assert_close(vectors, expected)


def test_a_class_has_the_score_of_its_best_name() -> None:
    scores = torch.tensor([0.1, 0.6, 0.3]).view(1, 3, 1, 1)
    found = best_name(scores, Vocabulary(classes=(("dog", "puppy"), ("sky",))))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.6, 0.3]))
