"""Reading the list of a batch."""

from __future__ import annotations

import pytest

from kie_provider.batch.prompts import duplicate_problems, read_prompts, read_requests
from kie_provider.client.prices import PriceTable
from kie_provider.submission.budget import estimate
from tests.support.messages import assert_tells

DEFAULTS = {"model": "flux-2/pro", "aspect_ratio": "1:1", "resolution": "1K", "input_images": None}


def prompts(value):
    items, problems = read_prompts(value, DEFAULTS)
    return [item["prompt"] for item in items], problems


@pytest.mark.parametrize(
    "value",
    [
        ["a fox", "an owl"],
        ("a fox", {"prompt": "an owl"}),
        "['a fox', 'an owl']",
        '["a fox", {"prompt": "an owl"}]',
        iter(["a fox", "an owl"]),
    ],
)
def test_lists_in_any_shape(value):
    assert prompts(value) == (["a fox", "an owl"], [])


@pytest.mark.parametrize("value", ["a fox", None, 7, {"prompt": "a fox"}, b"a fox"])
def test_what_is_no_list(value):
    items, [problem] = prompts(value)
    assert items == []
    assert_tells(problem, "prompts: ", "list of prompts or dicts", f"got {value!r}")


@pytest.mark.parametrize("value", [[], "[]", ()])
def test_an_empty_list(value):
    assert prompts(value) == ([], ["prompts: is empty; give at least one"])


def test_an_item_speaks_for_itself():
    items, _ = read_prompts([{"prompt": "a fox", "resolution": "2K"}, "an owl"], DEFAULTS)

    assert items == [{**DEFAULTS, "prompt": "a fox", "resolution": "2K"}, {**DEFAULTS, "prompt": "an owl"}]


@pytest.mark.parametrize("blank", ["", " ", "None", None, float("nan")])
def test_an_empty_cell_means_the_default_of_the_batch(blank):
    defaults = {**DEFAULTS, "aspect_ratio": "16:9", "resolution": "2K"}
    row = {"prompt": "a fox", "model": blank, "aspect_ratio": blank, "resolution": blank, "nsfw_checker": blank}
    items, _ = read_prompts([row], defaults)
    [request], problems = read_requests(items)

    assert not problems
    assert request.body == {
        "model": "flux-2/pro-text-to-image",
        "input": {"prompt": "a fox", "aspect_ratio": "16:9", "resolution": "2K"},
    }


def test_all_that_is_wrong_is_named_at_once():
    items, _ = read_prompts(["a fox", "x", {"prompt": "an owl", "resolution": "9K", "seed": 1}, None, 7], DEFAULTS)

    _, problems = read_requests(items)

    text = "\n".join(problems)
    for start in (
        "prompts[1].prompt: 'x' has 1 character;",
        "prompts[2].resolution: '9K' is not allowed",
        "prompts[2].seed: there is no such field",
        "prompts[3].prompt: must be text, got None: the upstream task returned nothing",
        "prompts[4].prompt: must be text, got int 7",
    ):
        assert start in text
    assert "prompts[0]" not in text


def test_an_input_image_that_many_share_is_opened_once(monkeypatch):
    opened = []

    def read(value):
        opened.append(value)
        return [], ["input_images: is not there"]

    monkeypatch.setattr("kie_provider.batch.prompts.read_input_images", read)
    items, _ = read_prompts(["a fox", "an owl", "a hare"], {**DEFAULTS, "input_images": "/photo.png"})

    _, problems = read_requests(items)

    assert opened == ["/photo.png"]
    assert [problem for problem in problems if "is not there" in problem] == [
        f"prompts[{index}].input_images: is not there" for index in range(3)
    ]


def test_fingerprints_tell_orders_apart_and_nothing_else():
    full = {"prompt": "a fox", "model": "flux-2/pro-text-to-image"}
    items, _ = read_prompts(["a fox", full, "an owl", {"resolution": "2K", "prompt": "a fox"}], DEFAULTS)
    fox, same, owl, large = (request.fingerprint for request in read_requests(items)[0])

    assert fox == same
    assert len({fox, owl, large}) == 3
    problems = duplicate_problems([fox, owl, same, same])
    assert [problem.partition(": ")[0] for problem in problems] == ["prompts[2]", "prompts[3]"]
    for problem in problems:
        assert_tells(problem, "prompts[0]", "allow_duplicates=True")


def test_estimate():
    items, _ = read_prompts(["a fox", "an owl", {"prompt": "a hare", "resolution": "2K"}], DEFAULTS)
    requests, _ = read_requests(items)
    kinds = [request.kind for request in requests]

    assert estimate(kinds, PriceTable.parse()) == (
        17,
        "2 x flux-2/pro-text-to-image at 1K for 5, 1 x flux-2/pro-text-to-image at 2K for 7",
    )
    assert estimate(kinds, PriceTable({}, 0.005))[0] is None
    assert estimate([], PriceTable.parse()) == (0, "")
