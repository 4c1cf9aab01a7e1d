"""The little English that captions need: articles, plurals and small numbers."""

import re

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

_IRREGULAR = {
    "mouse": "mice", "tooth": "teeth", "foot": "feet", "goose": "geese", "person": "people",
    "child": "children", "man": "men", "woman": "women", "ox": "oxen", "leaf": "leaves",
    "knife": "knives", "wolf": "wolves", "loaf": "loaves", "half": "halves", "cactus": "cacti",
    "sheep": "sheep", "fish": "fish", "shrimp": "shrimp", "squid": "squid", "deer": "deer",
    "bison": "bison", "sushi": "sushi", "moose": "moose",
}  # fmt: skip

# Where the head of a name ends: "glass of milk" is a kind of glass, "cat with wry smile" a cat.
_AFTER_HEAD = re.compile(
    r" (?:of|with|without|in|on|behind|over|at|for|from|holding|blowing|screaming|fluttering"
    r"|showing|tilted|and) |(?<=person) (?=\w+ing\b)|(?<=face) (?=\w+ing\b)"
    r"|(?<=chart) (?=\w+ing\b)"
)
# Singular although it ends in s; all other names in -s are plural already ("glasses", "eyes").
_SINGULAR_S = re.compile(r"(ss|us|is|os|as)$")
# Nouns in -ing; the others are activities ("camping") and take no article.
_ING_NOUNS = {"ring", "king", "wing", "building", "dumpling", "duckling", "seedling", "wedding"}
_MASS = {
    "bread", "rice", "butter", "salt", "garlic", "ice", "bacon", "broccoli", "corn", "milk",
    "sushi", "spaghetti", "money", "soap", "dna", "popcorn", "sake", "fondue", "custard",
    "falafel", "curry", "oden", "dango", "beer", "food", "fire", "fog", "mate", "ginger", "skis",
    "luggage",
}  # fmt: skip


def _head(name: str) -> tuple[str, str]:
    """The name up to and with its head noun, and the rest."""
    match = _AFTER_HEAD.search(name)
    return (name[: match.start()], name[match.start() :]) if match else (name, "")


def _has_singular(name: str) -> bool:
    last = _head(name)[0].split()[-1].lower()
    activity = last.endswith("ing") and last not in _ING_NOUNS
    already_plural = last.endswith("s") and not _SINGULAR_S.search(last)
    return not (last in _MASS or activity or already_plural)


def is_countable(name: str) -> bool:
    """Whether "two ..." of it is natural."""
    return _has_singular(name) and " and " not in name


def plural(name: str) -> str:
    """The plural, made at the head noun: "glass of milk" gives "glasses of milk"."""
    head, rest = _head(name)
    *before, last = head.split()
    lower = last.lower()
    if not _has_singular(name) or lower.endswith("fish"):
        many = last
    elif lower in _IRREGULAR:
        many = _IRREGULAR[lower]
    elif re.search(r"(s|x|z|ch|sh)$", lower) or lower in {"potato", "tomato", "mango", "volcano"}:
        many = last + "es"
    elif re.search(r"[^aeiou]y$", lower):
        many = last[:-1] + "ies"
    else:
        many = last + "s"
    return " ".join((*before, many)) + rest


def with_article(name: str) -> str:
    """With "a" or "an"; nothing before plurals and substances."""
    if not _has_singular(name):
        return name
    vowel = re.match(r"[aeio]|u(?!ni|se|fo|kr|til)|hour|x-ray", name.lower())
    return f"{'an' if vowel else 'a'} {name}"


def amount(count: int, name: str) -> str:
    """ "three red hearts"."""
    if not 1 <= count < len(NUMBERS):
        return f"{count} {plural(name)}"
    return with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"
