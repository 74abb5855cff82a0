import json

import pytest

from capwright.evaluate.named_objects import (
    NamedObjects,
    NameFinder,
    normal_name,
    precision_recall,
    truth_of,
)

LEXICON = {"pig", "tamworth pig", "butterfly", "butterfly fish", "f-22 raptor"}


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("A Tamworth pig and a butterfly fish.", {"tamworth pig", "butterfly fish"}),
        ("Pigs, an F-22 Raptor", {"pig", "f-22 raptor"}),
        ("A pigeon; guinea-pig; butterflying", set()),
        ("", set()),
    ],
)
def test_whole_words_longest_first(caption: str, names: set[str]) -> None:
    assert NameFinder(LEXICON).find(caption) == names


def test_no_lexicon_finds_nothing() -> None:
    assert NameFinder(set()).find("a pig") == set()


def test_micro_precision_and_recall_by_hand() -> None:
    captions = [["a pig", "a pig and a butterfly"], ["nothing"], []]
    truth = [{"pig", "f-22 raptor"}, {"butterfly"}, {"pig"}]
    # named: pig, butterfly; right: pig; true: 4
    expected = NamedObjects(precision=1 / 2, recall=1 / 4, f1=1 / 3, pairs=2)
    assert precision_recall(captions, truth, LEXICON) == expected


def test_naming_nothing_is_no_division_by_zero() -> None:
    assert precision_recall([[]], [{"pig"}], LEXICON).f1 == 0.0


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("A peacock (a male peafowl).", "peacock"),
        ("An F-22 Raptor, also a fighter.", "f-22 raptor"),
        ("the Plumber’s wrench", "plumber's wrench"),
    ],
)
def test_names_without_article_and_remarks(caption: str, name: str) -> None:
    assert normal_name(caption) == name


def test_the_truth_comes_from_the_boxes() -> None:
    boxes = [{"name": "Tamworth pig", "caption": "a Tamworth pig"}, {"name": "", "caption": ""}]
    assert truth_of(json.dumps(boxes)) == {"tamworth pig"}
