"""Sets of texts and of prompt templates, by name or from a file.

The config check needs only names. open_clip takes seconds to import and wordfreq reads word lists from disk, so both are
imported where a set is read.
"""

import re
from pathlib import Path

from nadpipe.data.text_files import read_lines
from nadpipe.errors import NadpipeError
from nadpipe.towers.word_lists import imagenet_names, imagenet_templates

TEMPLATE_SETS = ("imagenet", "imagenet-simple")
_IMAGENET = "imagenet"
_WORDFREQ = "wordfreq:"


def is_named(dictionary: str) -> bool:
    """Return True for a named dictionary, `imagenet` or `wordfreq:<count>`, and False for the path of a text file.

    Raises NadpipeError if the count is invalid.
    """
    if dictionary.startswith(_WORDFREQ) and not re.fullmatch("[1-9][0-9]*", dictionary.removeprefix(_WORDFREQ)):
        raise NadpipeError(f"{dictionary}: invalid count; write {_WORDFREQ}<count>, such as {_WORDFREQ}30000")
    return dictionary == _IMAGENET or dictionary.startswith(_WORDFREQ)


def read_dictionary(dictionary: str) -> list[str]:
    """Return the texts of a dictionary.

    `wordfreq:<count>`: English words by frequency in the wordfreq package, most frequent first. `imagenet`: open_clip's names
    of ImageNet's classes, without repetitions (sunglasses and missile name two classes each). Otherwise a file with one text
    per line. Raises NadpipeError if the count is invalid or too large, or if the file is unreadable or empty.
    """
    if not is_named(dictionary):
        texts = read_lines(Path(dictionary))
        if not texts:
            raise NadpipeError(f"{dictionary}: no texts; write one per line")
        return texts
    if dictionary == _IMAGENET:
        return list(dict.fromkeys(imagenet_names()))
    from wordfreq import top_n_list

    count = int(dictionary.removeprefix(_WORDFREQ))
    words = top_n_list("en", count)
    if len(words) < count:
        raise NadpipeError(f"{dictionary}: wordfreq has {len(words)} English words; choose a smaller count")
    return words


def check_templates(templates: list[str]) -> list[str]:
    """Return the templates if each contains {} once, or if they are one name of TEMPLATE_SETS. Otherwise raise NadpipeError."""
    if len(templates) == 1 and templates[0] in TEMPLATE_SETS:
        return templates
    if not templates:
        raise NadpipeError("no templates; give at least one, such as {}")
    for template in templates:
        if template.count("{}") != 1:
            raise NadpipeError(
                f"template {template!r}: must contain {{}} once, where the text goes; "
                f"a template set ({', '.join(TEMPLATE_SETS)}) must be the only entry"
            )
    return templates


def read_templates(templates: list[str]) -> list[str]:
    """Return the templates, or those of a named set: open_clip's `imagenet` (80 templates) or `imagenet-simple` (7).

    Raises NadpipeError as `check_templates` does.
    """
    if check_templates(templates)[0] not in TEMPLATE_SETS:
        return templates
    return imagenet_templates(simple=templates[0] != _IMAGENET)
