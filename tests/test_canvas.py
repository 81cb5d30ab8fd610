import pytest
import torch
import torch.nn.functional as F

from nadpipe.circuit import canvas as canvases
from nadpipe.circuit.canvas import Canvas, Labelling, arrange, contenders, label, make_axis, make_canvas


def merged(logits, top, left, crop, resized, size):
    """Return logits computed as published: resize every crop to its pixels, average overlaps, resize to the mask's size."""
    logits = logits.double()
    total, count = torch.zeros(logits.shape[1], *resized, dtype=torch.float64), torch.zeros(resized)
    for view, y, x in zip(logits, top, left, strict=True):
        total[:, y : y + crop, x : x + crop] += F.interpolate(view[None], size=(crop, crop), mode="bilinear")[0]
        count[y : y + crop, x : x + crop] += 1
    return F.interpolate((total / count)[None], size=size, mode="bilinear")[0]


IMAGES = {
    "one view": ([0], [0], 12, (12, 12), (12, 12)),
    "wide": ([0, 0, 0], [0, 6, 9], 12, (12, 21), (31, 54)),
    "both ways, made smaller": ([0, 0, 5, 5], [0, 5, 0, 5], 8, (13, 13), (9, 7)),
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_pixels_are_those_of_crops_resized_and_averaged(image, block, monkeypatch):
    top, left, crop, resized, size = IMAGES[image]
    logits = torch.randn(len(top), 4, 3, 3, generator=torch.Generator().manual_seed(1))
    expected = merged(logits, top, left, crop, resized, size)
    canvas = make_canvas(top, left, crop, 3, resized, size)
    cells = arrange(logits.flatten(2), top, left, 3)
    torch.testing.assert_close(canvas.pixels(cells, slice(None)), expected.float(), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(canvases, "_BLOCK", block)
    labels = label(cells, canvas, Labelling(torch.arange(4), 4, temperature=3.0))
    assert (labels == expected.argmax(0)).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 70), (61, 40), (500, 333)])
def test_weights_are_linear_between_lines(size):
    canvas = make_canvas([0, 0, 9, 9], [0, 17, 0, 17], 24, 6, (33, 41), size)
    for axis, length in zip((canvas.rows, canvas.columns), size, strict=True):
        assert (axis.lines[0], axis.lines[-1]) == (0, length - 1)
        assert len(axis.weights) == length
        for start, end in zip(axis.lines, axis.lines[1:], strict=False):
            share = torch.linspace(0, 1, end - start + 1)[:, None]
            straight = torch.lerp(axis.weights[start], axis.weights[end], share)
            torch.testing.assert_close(axis.weights[start : end + 1], straight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (61, 40), (151, 97)])
@pytest.mark.parametrize("block", [1, 2000, 10**6])
@pytest.mark.parametrize("smooth", [False, True])
def test_skipped_texts_are_the_best_at_no_pixel(size, block, smooth, monkeypatch):
    """Label noise and a map of few regions; candidates alone must give the same labels as all texts."""
    monkeypatch.setattr(canvases, "_BLOCK", block)
    noise = torch.randn(4, 30, 36, generator=torch.Generator().manual_seed(3))
    if smooth:
        noise[:, ::3, :18] += 9
        noise[:, 4, 30:] += 20
    top, left = [0, 0, 9, 9], [0, 17, 0, 17]
    canvas = make_canvas(top, left, 24, 6, (33, 41), size)
    cells = arrange(noise, top, left, 6)
    logits = canvas.pixels(cells, slice(None))
    first, second = logits.topk(2, dim=0).values
    labels = label(cells, canvas, Labelling(torch.arange(30), 30, temperature=2.0))
    assert ((labels == logits.argmax(0)) | (first - second < 1e-5)).all()


def test_a_leading_text_leaves_few_candidates():
    logits = torch.zeros(3, 3, 5)
    logits[0, :2], logits[1, 2], logits[2] = 1.0, 3.0, -1.0
    logits[1, 1, 3] = 2.0  # may be the best in the blocks above; below, it is a candidate anyway
    assert contenders(logits).tolist() == [[True, True, False], [True, True, False]]
    assert contenders(logits[:, :2, :2]).tolist() == [[True, False, False]]


def pixels(logits, rules):
    """Return labels of an image whose pixels are its tokens."""
    size = tuple(logits.shape[1:])
    canvas = Canvas(*(make_axis(torch.eye(side, dtype=torch.float64)) for side in size))
    return label(logits, canvas, rules)


def test_a_class_uses_its_best_text():
    logits = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 3.0, 0.0]], [[0.5, 2.0, 1.0]]])
    assert pixels(logits, Labelling(torch.tensor([0, 0, 1]), 2, temperature=1.0)).tolist() == [[0, 0, 1]]


def around(share):
    """Return thresholds a little below and above a probability."""
    return share - 1e-4, share + 1e-4


def test_improbable_pixels_are_background():
    logits = torch.tensor([[[5.0, 0.1, 0.0]], [[0.0, 0.0, 5.0]]])
    for temperature in (1.0, 3.0):
        share = torch.softmax(logits[:, 0, 1] * temperature, 0).max().item()
        cases = [
            Labelling(torch.tensor([1, 2]), 3, temperature, background=0, threshold=threshold) for threshold in around(share)
        ]
        assert [pixels(logits, rules).tolist() for rules in cases] == [[[1, 1, 2]], [[1, 0, 2]]]  # the background has no text


def test_the_probability_of_the_best_text_is_over_all_texts():
    logits = torch.tensor([[[1.0]], [[0.8]], [[0.5]]])
    share = torch.softmax(logits.flatten(), 0).max().item()
    cases = [Labelling(torch.tensor([1, 1, 2]), 3, 1.0, background=0, threshold=threshold) for threshold in around(share)]
    assert [pixels(logits, rules).item() for rules in cases] == [1, 0]


def test_small_classes_are_replaced_by_the_next_best():
    logits = torch.zeros(3, 1, 10)
    logits[0], logits[1, 0, 5:], logits[2, 0, 9] = 0.5, 1.0, 2.0
    assert pixels(logits, Labelling(torch.arange(3), 3, 1.0, area=0.2)).tolist() == [[0] * 5 + [1] * 5]
    assert pixels(logits, Labelling(torch.arange(3), 3, 1.0, area=0.1))[0, 9] == 2
    assert pixels(logits, Labelling(torch.arange(3), 3, 1.0, background=2, area=0.2))[0, 9] == 2  # never too small
    assert pixels(logits, Labelling(torch.arange(3), 3, 1.0, area=0.9)).unique().tolist() == [0]  # the largest one stays
    share = torch.softmax(torch.tensor([0.5, 1.0, 2.0]), 0)[1].item()  # among all texts, as published, also removed ones
    cases = [Labelling(torch.arange(4), 4, 1.0, background=3, threshold=threshold, area=0.2) for threshold in around(share)]
    with_background = torch.cat([logits, torch.full((1, 1, 10), -99.0)])
    assert [pixels(with_background, rules)[0, 9].item() for rules in cases] == [1, 3]
