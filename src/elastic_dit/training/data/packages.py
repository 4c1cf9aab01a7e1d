"""The npm packages the emoji data comes from, with what their licences ask us to say."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One npm package and, for image sets, where its pictures lie."""

    name: str
    version: str
    licence: str
    attribution: str
    home: str
    pictures: str = ""
    """Folder of the pictures inside the tarball; empty for emojibase."""

    @property
    def tarball(self) -> str:
        """The file name `npm pack` gives."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


NAMES = Package(
    name="emojibase-data",
    version="17.0.0",
    licence="MIT",
    attribution="Names, tags and groups. Copyright (c) 2017-2019 Miles Johnson.",
    home="https://github.com/milesj/emojibase",
)

STYLES: Mapping[str, Package] = {
    "3d": Package(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        licence="MIT",
        attribution="Fluent Emoji. Copyright (c) Microsoft Corporation. Packaged by LobeHub.",
        home="https://github.com/microsoft/fluentui-emoji",
        pictures="package/assets/",
    ),
    "noto": Package(
        name="emoji-datasource-google",
        version="16.0.0",
        licence="Apache-2.0",
        attribution="Noto Emoji. Copyright Google LLC. Packaged by Cal Henderson (emoji-data). "
        "Licence: https://www.apache.org/licenses/LICENSE-2.0",
        home="https://github.com/googlefonts/noto-emoji",
        pictures="package/img/google/64/",
    ),
    "twemoji": Package(
        name="emoji-datasource-twitter",
        version="16.0.0",
        licence="CC-BY-4.0",
        attribution="Twemoji. Copyright 2020 Twitter, Inc and other contributors. Packaged by Cal "
        "Henderson (emoji-data). Licence: https://creativecommons.org/licenses/by/4.0/",
        home="https://github.com/twitter/twemoji",
        pictures="package/img/twitter/64/",
    ),
}
"""Style word -> image set. Each style is one artist's hand, so it can be asked for by name."""

PACKAGES = (NAMES, *STYLES.values())

_MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def notice() -> str:
    """The text of NOTICE.md, to lie beside every copy of the pictures."""
    lines = [f"- **{p.name} {p.version}** ({p.licence}): {p.attribution} {p.home}" for p in PACKAGES]
    return "\n".join(
        (
            "# Where these images come from",
            "",
            "They are made from emoji graphics, not photographs. The originals were changed: ",
            "trimmed, resized, in part recoloured, and placed in scenes with generated captions.",
            "",
            *lines,
            "",
            "## The MIT licence, for the packages under it",
            "",
            _MIT,
        )
    )
