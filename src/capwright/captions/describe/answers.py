"""The caption in a chat model's answer: without greetings, labels, quotes and Markdown; or that it
refused.

`caption_of` gives one line of text. It takes off only what stands around a caption ("Sure, here is
a caption: …", "Let me know if …"), never words within it.
"""

import re

_AROUND = re.compile(
    r"\A(?:"
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok)\b[,.!:]+"
    r"|here(?:'s| is| are)\b[^:\n]{0,100}(?::|\n)"
    r"|(?:the |a )?(?:short |long |brief |detailed |image |picture |alt |one-sentence )*"
    r"(?:caption|description|answer|output|response)\s*:"
    r"|```\w*\s|#+\s|\*\*|[-*•]\s"
    r")\s*",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"(?:\s*```"
    r"|(?:\n|(?<=[.!\"”]))\s*(?:let me know\b|(?:i )?hope (?:this|that|it)\b|feel free\b"
    r"|is there anything\b|would you like\b|if you(?:'d like| would like| need| want| have)\b)"
    r"[^\n]*)\s*\Z",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "`": "`", "«": "»"}
_REFUSAL = re.compile(
    r"(?:\A|[.!,]\s)\W*(?:but |however,? |unfortunately,? )?(?:"
    r"as an? (?:ai|artificial|language|text)\b"
    r"|(?:i'?m|i am) (?:very |so |really )?(?:sorry|afraid)\b"
    r"|(?:my apologies|i apologi[sz]e)\b"
    r"|sorry,? (?:but )?i\b"
    r"|i (?:cannot|can'?t|can not|could not|couldn'?t|won'?t|will not|do not|don'?t|am unable to"
    r"|am not able to) (?:help|assist|describe|provide|see|view|access|identify|process|analy[sz]e"
    r"|comply|fulfil+|create|generate|answer|do|have)\b"
    r"|i'?m (?:unable|not able)\b"
    r")",
    re.IGNORECASE,
)
_HEAD = 200  # characters within which a refusal begins


def refused(answer: str) -> bool:
    """Whether the model says that it will or can not describe the picture."""
    return bool(_REFUSAL.search(_plain(answer)[:_HEAD]))


def caption_of(answer: str) -> str:
    """The caption in an answer, on one line; "" if there is none."""
    text = _plain(answer)
    before = None
    while text != before:
        before = text
        text = _AFTER.sub("", _AROUND.sub("", text, count=1).strip()).strip()
        if text.endswith("**") and text.count("**") % 2:
            text = text.removesuffix("**").rstrip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
    return " ".join(text.split())


def _plain(answer: str) -> str:
    return answer.strip().replace("’", "'")
