import pytest

from capwright.datasets.scenes.words import article, head_name, is_plural, noun_phrase


@pytest.mark.parametrize(
    ("line", "stem", "phrase", "name"),
    [
        ("A Tamworth pig.", "pig_golden", "a Tamworth pig", "Tamworth pig"),
        ("A “Fuji” apple.", "apple_fuji", "a Fuji apple", "Fuji apple"),
        ("Eat your broccoli!", "broccoli", "broccoli", "broccoli"),
        ("Hibiscus", "chemparathi", "a hibiscus", "hibiscus"),
        ("Adenium (Desert Rose)", "adeenia", "an adenium", "adenium"),
        ("A very poisonous lionfish!", "lionfish", "a very poisonous lionfish", None),
        ("A hoverfly resembles a honeybee drone.", "hoverfly", "a hoverfly", "hoverfly"),
        ("A dumper. It carries its load in the front.", "dumper", "a dumper", "dumper"),
        ("A Seville orange, also called a bitter orange.", "o", "a Seville orange", None),
        ("A ripe, red tomato!", "tomato", "a ripe, red tomato", None),
        ("An hippopotamus.", "hippo", "a hippopotamus", "hippopotamus"),
        ("A pair of pliers.", "plyers", "a pair of pliers", "pliers"),
        ("Two wild boars.", "wildboar", "two wild boars", "wild boars"),
        ("A birch at winter.", "birch", "a birch at winter", "birch"),
        ("The baby of a gnu.", "gnu-baby", "the baby of a gnu", "gnu"),
        ("This gun last saw service during World War 2.", "old_gun-2", "an old gun", "old gun"),
        ("With a fast APC you can surprise the enemy.", "strykerTank", "a stryker tank", None),
        ("", "042", "a thing", "thing"),
    ],
)
def test_captions_become_noun_phrases(line: str, stem: str, phrase: str, name: str | None) -> None:
    assert noun_phrase(line, stem) == phrase
    assert head_name(phrase) == (name or phrase.partition(" ")[2])


@pytest.mark.parametrize(
    ("phrase", "plural"),
    [("two boars", True), ("some flowers", True), ("a pair of pliers", False), ("an iris", False)],
)
def test_plural(phrase: str, plural: bool) -> None:
    assert is_plural(phrase) is plural


@pytest.mark.parametrize(
    ("word", "expected"),
    [("owl", "an"), ("unicorn", "a"), ("European", "a"), ("F-22", "an"), ("UK", "a"), ("VW", "a")],
)
def test_article_follows_the_sound(word: str, expected: str) -> None:
    assert article(word) == expected
