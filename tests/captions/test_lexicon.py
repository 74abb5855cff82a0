import pytest

from capwright.captions.lexicon import Lexicon, build_lexicon, split_words

WEB = [
    "a tamworth pig - shop",
    "photo of a pig",
    "pig HD wallpaper",
    "tamworth pig!!",
    "a pear, 2004",
]
HUMAN = [
    "A Tamworth pig stands on the left before a plain wall.",
    "A pig lies there; a bunch of pears.",
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("An F-22 Raptor.", ["An", "F-22", "Raptor", "."]),
        ("plumber’s wrench_12.jpg", ["plumber's", "wrench", "_", "12", ".", "jpg"]),
        ("", []),
    ],
)
def test_words_keep_hyphens_and_leave_marks(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_names_are_what_people_name_and_the_web_uses_too() -> None:
    names = build_lexicon(HUMAN, WEB, min_web_count=2).names
    assert names == ("pig", "tamworth pig")  # no "plain wall", no "bunch", no "pig stands"


def test_the_web_alone_names_what_it_says_often() -> None:
    assert build_lexicon([], ["a pear by us"] * 4).names == ("pear",)
    assert build_lexicon([], ["a pear by us"] * 3).names == ()


def test_the_longest_name_is_found_and_plurals_too() -> None:
    lexicon = Lexicon(("pig", "tamworth pig", "pear"))
    assert lexicon.names_in("Two Tamworth pigs, a pig and some pears.") == [
        "tamworth pig",
        "pig",
        "pear",
    ]
    assert lexicon.names_in("pigeon, spear") == []
