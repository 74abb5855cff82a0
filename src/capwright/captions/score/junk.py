"""Text that says nothing about any picture: file names, addresses, shop phrases, placeholders.

Reads and writes nothing. Clutter is taken out of a text kind by kind; where no word is left, the
text is junk of the first kind that was found. So "Tamworth pig stock photo 2304" is no junk, and
"stock photo 2304" is. A lone file name of a picture is junk whatever words it is made of.

Few texts have to be looked at so closely: one with an ordinary word that occurs in no phrase below
is no junk, and the words' hashes (`measures.py`) tell that for a whole batch at once.
"""

import re
from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from capwright.captions.score.measures import GAP, NUMERIC, Hashes, Texts, word_hashes

FILE_NAME, URL, MARKUP = "file name", "url", "markup"
SHOP, BOILERPLATE, PLACEHOLDER = "shop phrase", "boilerplate", "placeholder"
DIGITS, NO_WORDS = "mostly digits", "no words"
KINDS = (FILE_NAME, URL, MARKUP, SHOP, BOILERPLATE, PLACEHOLDER, DIGITS, NO_WORDS)
MOSTLY_DIGITS = 0.6  # of what is no white space
MAX_LATIN = 0x24F  # a lone letter of these scripts is no word
# what may stand right before and after an ordinary word
OPENING, CLOSING = " \n\t\"'“‘([", " \n\t\"'”’)],.:;!?…"

_SUFFIXES = r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif|psd|mp4|mov|webm|pdf|html?|php|aspx?)"
_DOMAINS = r"\.(?:com|net|org|info|biz|edu|gov|io|shop|example|co\.uk|de|fr|it|es|nl|ru|eu|cn|jp)"
_CAMERAS = """
img dsc dscn dscf dcim pict sam gopr pxl wp mvc cimg imgp screenshot screenshots scan
"""
# Patterns of phrases, one or several (between bars) a line; a blank is any run of marks.
_SHOP = r"""
free (?:(?:worldwide|standard|uk|us) )?(?:shipping|delivery|returns?)(?: on(?: all)? orders?)?
(?:add|added) to (?:(?:your|my) )?(?:cart|basket|bag|wishlist|favou?rites|compare)
(?:buy|shop|order|book|call|bid) (?:it )?(?:now|today|online|here)
(?:(?:best|lowest|low|great|special|regular|sale|cheap|discount|wholesale|unit) )?prices?
buy \d+ get \d+(?: free)?
(?:sale|save)?(?: ?up to)? ?\d+[\W_]*off|\d+[\W_]*discount|(?:sale|save) up to|(?:now|only) \d+
\d[\d.,]* ?(?:usd|eur|gbp|pcs)|pack of \d+|sku \S+
(?:in|out of|limited|low) stock|(?:on|for) sale|sold out|best ?sellers?|new arrivals?
(?:this week|today|online) only|money back guarantee|customer reviews?|free download
(?:quick|view) (?:view|details|product|cart)|gift ?cards?|coupons?|checkout|discounts?|clearance
"""
_BOILERPLATE = r"""
(?:click|tap|press|hover) (?:here )?(?:to|for|on)(?: the)?
enlarge|zoom|(?:view|see|play|open)(?: video)?|full size|larger? (?:images?|pictures?|photos?)
click here|(?:read|learn|see|load|show|view) more|view (?:all|larger|full size)
all rights reserved|copyright|powered by|(?:(?:photo|image|picture) )?credits?|via
share(?: this)?(?: (?:on|via|with|by))?(?: email)?|pin it|tweet
(?:follow|like|find|join|contact|visit) us(?: on)?
(?:(?:on|by|via) )?(?:facebook|twitter|instagram|pinterest|youtube|whatsapp|flickr|tumblr|wikipedia)
subscribe(?: now| to| here)?|newsletter|sign (?:up|in)|log ?in|(?:accept )?cookies
privacy policy|terms of use|terms and conditions|skip to content
(?:related|recent|previous|next|older|newer|similar) (?:posts?|articles?|products?|pages?|items?)
previous|next|back|home|menu|search|close|advertisements?|sponsored|loading
(?:image|photo|picture) may contain(?: outdoor| indoor| text| one or more people| people)?
(?:(?:photo|image|picture) )?gallery(?: page)?|page \d+(?: of \d+)?
(?:image|photo|slide|picture|figure) \d+ of \d+
royalty free(?: (?:images?|photos?|vectors?|illustrations?|stock))*
(?:free )?stock (?:photos?|images?|vectors?|illustrations?|photography|footage)
(?:(?:hd|desktop|free|mobile|iphone) )*(?:wallpapers?|backgrounds?)(?: hd)?|clip ?arts?|hd|uhd|k
high (?:resolution|quality|res)|(?:photo|image|picture|uploaded|posted|submitted) by|user ?\d+
"""
_PLACEHOLDER = r"""
no (?:image|photo|picture|description|caption|title|alt text|alt|name|text)
(?:is )?(?:available|provided|found|yet)
(?:not available|unavailable|coming soon)|(?:alt|alternative)(?: text)?
descriptions?|captions?|titles?|default|dummy|untitled|lorem ipsum|emoji|test
images?|photos?|photographs?|pictures?|pics?|imgs?|figures?|fig|snapshots?|illustrations?|graphics?
thumbnails?|thumb|placeholder|null|none|undefined|nan|unknown|unnamed
icons?|logos?|avatars?|banners?|buttons?|headers?|footers?|spacer|blank|bullets?|arrows?
"""
_EMPTY_WORDS = """
a the an of in on at by for to from with and or is are was be this that these those it its my your
our his her their new more here all very as no not per st nd rd th px mb kb am pm
"""


def junk_kind(text: str) -> str:
    """One of KINDS for a text that says nothing about a picture, "" for another."""
    if _LONE_FILE.fullmatch(text.strip()) and "://" not in text:
        return FILE_NAME
    kind, rest = "", text
    for name, pattern in _patterns():
        rest, count = pattern.subn(" ", rest)
        if count and not kind:
            kind = name
    says_something = _WORD.search(_phrases(_EMPTY_WORDS.replace(" ", "|")).sub(" ", rest))
    digits = sum(c.isnumeric() for c in text)
    numbers = digits >= MOSTLY_DIGITS * sum(not c.isspace() for c in text)
    if says_something:
        return DIGITS if numbers else ""
    return kind or (DIGITS if numbers and _WORD.search(text) else NO_WORDS)


def junk_kinds(texts: Sequence[str], batch: Texts | None = None) -> list[str]:
    """`junk_kind` of many texts; `batch` holds the same ones."""
    batch = batch or Texts(texts)
    kinds = [""] * len(texts)
    for i in np.flatnonzero(_suspects(batch)).tolist():
        kinds[i] = junk_kind(texts[i])
    return kinds


def _suspects(batch: Texts) -> NDArray[np.bool_]:
    """Texts without an ordinary word, or with many digits; no other can be junk."""
    words, known = batch.words, vocabulary()
    at = np.searchsorted(known, words.hash_W).clip(max=len(known) - 1)
    length_W = words.end_W - words.start_W
    ordinary_W = (known[at] != words.hash_W) & (length_W == words.letters_W)  # no marks inside
    ordinary_W &= (length_W > 1) | (batch.codes_N[words.start_W] > MAX_LATIN)
    around = np.append(batch.codes_N, ord(" "))
    for at_W, marks in ((words.start_W - 1, OPENING), (words.end_W, CLOSING)):
        plain = np.isin(around[at_W], np.array([ord(mark) for mark in marks]))
        outside = (batch.begin_T[words.text_W] > at_W) | (batch.end_T[words.text_W] <= at_W)
        ordinary_W &= plain | outside
    ordinary_T = np.bincount(words.text_W[ordinary_W], minlength=batch.count)
    numbers_T = batch.share(NUMERIC) >= MOSTLY_DIGITS * (1 - batch.share(GAP)) - 1e-9
    suspects: NDArray[np.bool_] = (ordinary_T == 0) | numbers_T
    return suspects


@cache
def vocabulary() -> Hashes:
    """Sorted hashes of the words that some phrase of clutter is made of."""
    listed = " ".join([_SHOP, _BOILERPLATE, _PLACEHOLDER, _CAMERAS, _EMPTY_WORDS])
    listed += listed.replace(" ?", "")  # "log ?in" is "login" too
    tokens = re.findall(r"(?<!\\)\b[a-z][a-z?]*", listed)
    return np.unique(word_hashes(sorted({form for token in tokens for form in _forms(token)})))


def _forms(token: str) -> list[str]:
    """ "photos?" → "photos", "photo"."""
    pieces = re.findall(r"[a-z]\??", token)
    choices = [(piece[0], "") if piece.endswith("?") else (piece,) for piece in pieces]
    return ["".join(form) for form in product(*choices)]


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """What each kind takes out of a text, in order."""
    cameras = "|".join(_CAMERAS.split())
    return (
        (MARKUP, re.compile(r"<[a-z/!][^>]*>|&#?[a-z0-9]{2,8};", re.I)),
        (URL, re.compile(r"(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+\.[\w.]+", re.I)),
        (FILE_NAME, re.compile(rf"{_SUFFIXES}(?![^\W_])", re.I)),
        (URL, re.compile(rf"{_BEGIN}[\w-]+(?:\.[\w-]+)*{_DOMAINS}(?:/\S*|(?![^\W_]))", re.I)),
        (FILE_NAME, re.compile(rf"{_BEGIN}(?:(?:{cameras})[-_ ]?\d+|p\d{{6,8}}){_END}", re.I)),
        (SHOP, _phrases(_SHOP)),
        (BOILERPLATE, _phrases(_BOILERPLATE)),
        (PLACEHOLDER, _phrases(f"{_PLACEHOLDER}{'|'.join(_CAMERAS.split())}")),
    )


@cache
def _phrases(listed: str) -> re.Pattern[str]:
    """A pattern for whole phrases; digits may follow a word."""
    either = "|".join(listed.strip().splitlines()).replace(" ", r"[\W_]+").replace("+?", "*")
    return re.compile(rf"{_BEGIN}(?:{either}){_END}", re.IGNORECASE)


_BEGIN, _END = r"(?<![^\W\d_])", r"(?![^\W\d_])"
_LONE_FILE = re.compile(rf"\S+{_SUFFIXES}", re.IGNORECASE)
# two letters, or one of a script that writes whole words with one
_WORD = re.compile(r"[^\W\d_]{2}|[\u0900-\uffff]")
