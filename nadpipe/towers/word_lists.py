"""Word lists that come with open_clip and timm: names of ImageNet's classes, and prompt templates.

Both libraries take seconds to import, so they are imported where a list is read: the config check needs only names.
"""


def imagenet_names() -> list[str]:
    """Return open_clip's names of ImageNet's 1,000 classes, in order; sunglasses and missile name two classes each."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def imagenet_synsets() -> list[str]:
    """Return the synsets of ImageNet's 1,000 classes, such as n01440764, in the same order."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo().label_names())


def imagenet_templates(simple: bool) -> list[str]:
    """Return open_clip's prompt templates for ImageNet with {} for the text: the simple set of 7, or all 80."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    functions = SIMPLE_IMAGENET_TEMPLATES if simple else OPENAI_IMAGENET_TEMPLATES
    return [function("{}") for function in functions]
