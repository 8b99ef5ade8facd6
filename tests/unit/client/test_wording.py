"""Small words of messages."""

from __future__ import annotations

import pytest

from kie_provider.client.wording import counted, sentence, sentences


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (1.0, "1 image"), (2, "2 images"), (2.5, "2.5 images")]
)
def test_numbers_and_their_nouns(number, words):
    assert counted(number, "image") == words


def test_sentences():
    assert sentence("the key is wrong") == sentence("the key is wrong. ") == "the key is wrong."
    assert sentences("One. Two at kie.ai. Three!") == ["One.", "Two at kie.ai.", "Three!"]
