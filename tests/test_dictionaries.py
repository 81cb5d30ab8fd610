import subprocess
import sys

import open_clip
import pytest
import wordfreq
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from nadpipe.data.dictionaries import TEMPLATE_SETS, is_named, read_dictionary, read_templates
from nadpipe.errors import NadpipeError


def test_the_most_frequent_words_come_first_and_once():
    words = read_dictionary("wordfreq:30000")
    assert len(words) == len(set(words)) == 30000
    assert words[:3] == ["the", "to", "and"]
    frequency = [wordfreq.word_frequency(word, "en") for word in words]
    assert frequency == sorted(frequency, reverse=True)
    assert read_dictionary("wordfreq:7") == words[:7]
    assert all(word == word.strip() and word for word in words)


def test_the_names_of_imagenet_occur_once_each():
    names = read_dictionary("imagenet")
    assert set(names) == set(IMAGENET_CLASSNAMES)
    assert len(names) == len(set(names)) < len(IMAGENET_CLASSNAMES) == 1000
    assert names[:2] == ["tench", "goldfish"]
    assert {name for name in names if IMAGENET_CLASSNAMES.count(name) > 1} == {"sunglasses", "missile"}


def test_a_file_has_one_text_per_line(tmp_path):
    (tmp_path / "words.txt").write_text("  a fish \n\nübung\r\n \nlast", encoding="utf-8")
    assert read_dictionary(str(tmp_path / "words.txt")) == ["a fish", "übung", "last"]


@pytest.mark.parametrize(
    ("dictionary", "message"),
    [
        ("wordfreq:", "wordfreq:: .*write wordfreq:<count>"),
        ("wordfreq:0", "write wordfreq:<count>"),
        ("wordfreq:3e4", "write wordfreq:<count>"),
        ("wordfreq:-5", "write wordfreq:<count>"),
        ("wordfreq:9000000", r"wordfreq:9000000: wordfreq has \d+ English words; choose a smaller count"),
        ("imagenet-21k", "imagenet-21k: not a readable UTF-8 text file"),
    ],
)
def test_an_invalid_dictionary_is_reported_in_one_line(dictionary, message):
    with pytest.raises(NadpipeError, match=message) as error:
        read_dictionary(dictionary)
    assert "\n" not in str(error.value)


def test_names_are_distinguished_from_files():
    assert [is_named(name) for name in ("imagenet", "wordfreq:5", "./imagenet", "words.txt", "imagenet-simple")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(("name", "count"), [("imagenet", 80), ("imagenet-simple", 7)])
def test_each_template_of_a_set_contains_the_placeholder_once(name, count):
    templates = read_templates([name])
    assert len(templates) == len(set(templates)) == count
    assert all(template.count("{}") == 1 and template != "{}" for template in templates)
    assert set(templates) <= {template("{}") for template in OPENAI_IMAGENET_TEMPLATES}
    functions = open_clip.OPENAI_IMAGENET_TEMPLATES if count == 80 else open_clip.SIMPLE_IMAGENET_TEMPLATES
    assert [template.replace("{}", "a {fish}") for template in templates] == [template("a {fish}") for template in functions]


def test_every_named_template_set_is_read():
    assert len({len(read_templates([name])) for name in TEMPLATE_SETS}) == len(TEMPLATE_SETS)


def test_given_templates_are_returned_unchanged():
    assert read_templates(["{}", "a {} there"]) == ["{}", "a {} there"]


@pytest.mark.parametrize("templates", [["fish"], ["{}", "imagenet"], ["{} and {}"], ["imagenet", "imagenet-simple"], []])
def test_invalid_templates_are_refused(templates):
    with pytest.raises(NadpipeError, match=r"must contain \{\} once.*imagenet, imagenet-simple|no templates"):
        read_templates(templates)


def test_names_are_checked_without_importing_their_packages():
    """Checking the config must be fast, so only stages import torch, open_clip and wordfreq."""
    code = (
        "import sys; from nadpipe.config import check; from nadpipe.data.dictionaries import is_named, check_templates; "
        "assert is_named('imagenet') and is_named('wordfreq:30000') and check_templates(['imagenet']); "
        "print(sorted({'torch', 'open_clip', 'wordfreq'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
