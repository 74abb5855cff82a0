"""The words that a check of captions needs to know, and how it compares words and numbers.

Reads and writes nothing. English is what the lists know: a function word of another language has to
stand in a source like any other word.
"""

import math
import re
from functools import lru_cache

from capwright.captions.lexicon import FUNCTION_WORDS

# A sentence needs them, and they name nothing that could be missing from a picture. No negation:
# "without a leash" changes what a caption says.
_CONNECTING = """
a an the this that these those its it their his her they he she there which who while as such both
each all any more most much just only then than so too very also still already
within inside outside upon beneath underneath toward towards amid among amongst via per about beyond
atop alongside together nearby close away back front side top bottom edge center centre middle
corner foreground background left right
is are was were be been being has have had having can may seem seems appear appears appearing
show shows showing shown see seen seeing feature features featuring featured depict depicts
depicting depicted display displays displayed displaying capture captures captured capturing
contain contains containing include includes including included visible
stand stands standing sit sits sitting lie lies lying rest rests resting place placed set located
positioned situated surrounded accompanied next wear wears wearing worn made
call called name named know known title titled label labeled labelled
photo photograph picture image view scene shot close-up closeup type kind sort
"""
_NEGATIONS = frozenset(["no", "not", "nor", "without"])
ALLOWED = (FUNCTION_WORDS | frozenset(_CONNECTING.split())) - _NEGATIONS
# Of a shop or a web page, not of a picture: the alt text's word for it counts for nothing.
_CLUTTER = """
buy sale sales shop shopping store price prices cheap discount deal deals free shipping delivery
click download downloads subscribe follow visit website site www http https com stock royalty
copyright rights reserved wallpaper wallpapers hd 4k thumbnail banner screenshot gallery untitled
img dsc image images photo photos picture pictures pinterest facebook instagram twitter youtube
amazon ebay etsy shutterstock alamy getty login page posts related loading enlarge zoom warranty
guaranteed bestseller
"""
CLUTTER = frozenset(_CLUTTER.split())

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)
_ONES += " sixteen seventeen eighteen nineteen twenty"
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_ONES.split())}
NUMBER_WORDS |= {
    "dozen": "12", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70",
    "eighty": "80", "ninety": "90", "hundred": "100", "thousand": "1000", "million": "1000000",
}  # fmt: skip
_DIGITS = re.compile(r"\d+(?:[.,:/×x]\d+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")


def numbers(text: str) -> set[str]:
    """Every number of a text, in digits: "two" is 2 and "1,000" is 1000."""
    found = {_THOUSANDS.sub("", digits) for digits in _DIGITS.findall(text.lower())}
    return found | {
        NUMBER_WORDS[w] for w in re.findall(r"[a-z]+", text.lower()) if w in NUMBER_WORDS
    }


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """What inflections of a word share: "pigs" and "pig", "standing" and "stands"."""
    word = word.lower().removesuffix("'s").removesuffix("'")
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-2] if re.search(r"(s|x|z|ch|sh|o)es$", word) and len(word) > 4 else word[:-1]
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and len(root) > 2 and re.search(r"[aeiouy]", root):
            word = root[:-1] if root[-1] == root[-2] and root[-1] not in "lsz" else root
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def language(text: str) -> str:
    """The language of a text of a few words or more, or "" where that is not clear."""
    import py3langid

    best = py3langid.rank(text)[:20]
    # the root of the length keeps a short text from being certain
    scale = math.sqrt(len(text.encode()) or 1)
    odds = [math.exp((float(score) - float(best[0][1])) / scale) for _, score in best]
    return str(best[0][0]) if 1 / sum(odds) > 0.8 else ""
