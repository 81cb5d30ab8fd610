"""Sets of texts and of prompt templates, by name or from a file.

The config is checked by name alone: what a name stands for is imported when it is read, since open_clip takes seconds to
import and wordfreq reads its lists from disk.
"""

import re
from pathlib import Path

from nadpipe.errors import NadpipeError

TEMPLATE_SETS = ("imagenet", "imagenet-simple")
_IMAGENET = "imagenet"
_WORDFREQ = "wordfreq:"


def is_named(dictionary: str) -> bool:
    """Whether a dictionary is a named one, `imagenet` or `wordfreq:<count>`; else it is the path of a text file.

    Raises NadpipeError when the count is none.
    """
    if dictionary.startswith(_WORDFREQ) and not re.fullmatch("[1-9][0-9]*", dictionary.removeprefix(_WORDFREQ)):
        raise NadpipeError(f"{dictionary}: write {_WORDFREQ}<count>, such as {_WORDFREQ}30000")
    return dictionary == _IMAGENET or dictionary.startswith(_WORDFREQ)


def read_dictionary(dictionary: str) -> list[str]:
    """The texts of a dictionary.

    `wordfreq:<count>`: the most frequent English words by the wordfreq package, most frequent first. `imagenet`: ImageNet's
    class names as open_clip words them, each once (two classes are called sunglasses, two missile). Else a file, a text a line.
    Raises NadpipeError when the count is none or more than there are, or the file is not readable or empty.
    """
    if not is_named(dictionary):
        return read_lines(Path(dictionary))
    if dictionary == _IMAGENET:
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        return list(dict.fromkeys(IMAGENET_CLASSNAMES))
    from wordfreq import top_n_list

    count = int(dictionary.removeprefix(_WORDFREQ))
    words = top_n_list("en", count)
    if len(words) < count:
        raise NadpipeError(f"{dictionary}: wordfreq has {len(words)} English words; ask for no more")
    return words


def read_lines(file: Path) -> list[str]:
    """Lines of a text file, stripped, without the empty ones."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise NadpipeError(f"{file}: not a readable UTF-8 text file ({error})") from None
    texts = [line for line in lines if line]
    if not texts:
        raise NadpipeError(f"{file}: no texts; write one a line")
    return texts


def check_templates(templates: list[str]) -> list[str]:
    """The templates as given: each holds {} once, or they are one name of TEMPLATE_SETS alone; else raises NadpipeError."""
    if len(templates) == 1 and templates[0] in TEMPLATE_SETS:
        return templates
    if not templates:
        raise NadpipeError("no templates; the plainest is {}")
    for template in templates:
        if template.count("{}") != 1:
            raise NadpipeError(
                f"each template holds {{}} once, where the text goes; {template!r} does not, "
                f"and is no template set alone ({', '.join(TEMPLATE_SETS)})"
            )
    return templates


def read_templates(templates: list[str]) -> list[str]:
    """Templates as they were given, or open_clip's of the set that is named: `imagenet` (80) or `imagenet-simple` (7)."""
    if check_templates(templates)[0] not in TEMPLATE_SETS:
        return templates
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    chosen = OPENAI_IMAGENET_TEMPLATES if templates[0] == _IMAGENET else SIMPLE_IMAGENET_TEMPLATES
    return [template("{}") for template in chosen]  # open_clip has them as functions of the text
