from __future__ import annotations

import pytest

from kie_provider.client.plain import counted, is_http_url, sentence, sentences, shorten, storable


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (1.0, "1 image"), (2, "2 images"), (2.5, "2.5 images")]
)
def test_numbers_and_their_nouns(number, words):
    assert counted(number, "image") == words


def test_sentences():
    assert sentence("the key is wrong") == sentence("the key is wrong. ") == "the key is wrong."
    assert sentences("One. Two at kie.ai. Three!") == ["One.", "Two at kie.ai.", "Three!"]


@pytest.mark.parametrize("url", ["http://x", "https://x.example/a?b#c", "HTTPS://X", "http://[::1]:80/"])
def test_urls(url):
    assert is_http_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "//x", "/x", "ftp://x", "http://", "http:///x", "http://[x", None, 1, b"http://x"),
        *("https://x/a b", " https://x", "https://x/\n", "https://x\t.example", "https://x/\x00", "https://x/\ud800"),
        *("https://x:port/", "https://x:99999/", "https://x:0/", "https://x:-1/"),
    ],
)
def test_no_urls(url):
    assert not is_http_url(url)


def test_shorten_cuts_and_survives_bottomless_values():
    bottomless = []
    for _ in range(100_000):
        bottomless = [bottomless]
    assert shorten("a" * 100) == "'" + "a" * 59 + "..."
    assert shorten(bottomless) == "<list nested too deep>"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("cut \ud83e", "cut ?"),
        ({"\udc00": ["\ud83e\udd8a fox"]}, {"?": ["?? fox"]}),
        ("\U0001f98a, \u732b and \\ud83e", "\U0001f98a, \u732b and \\ud83e"),
        ([float("nan"), float("inf"), -float("inf"), 1.5, -0.0, 1e300], [None, None, None, 1.5, -0.0, 1e300]),
        ([2**63 - 1, 1 - 2**63, 2**63, -(10**30), 10**400], [2**63 - 1, 1 - 2**63, 2.0**63, -1e30, None]),
        (["nul \0", "\\\0", "\\u0000", "\\\\u0000"], ["nul ?", "\\?", "\\u0000", "\\\\u0000"]),
        ({"a": [True, None, "", {}]}, {"a": [True, None, "", {}]}),
    ],
)
def test_what_is_stored_can_be_stored(value, stored):
    assert storable(value) == stored
