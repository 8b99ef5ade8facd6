"""What an error must tell, whatever the words around it are."""

from __future__ import annotations

from kie_provider.client.errors import KieError


def assert_tells(error: object, kind: type[KieError], *facts: str) -> None:
    """Check that an error, or its text, says what kind it is, each of these facts, and what to do."""
    text = str(error)
    assert text.startswith(kind.summary), text
    assert " -> " in text or not kind.advice, text
    missing = [fact for fact in facts if fact not in text]
    assert not missing, f"{missing} not in: {text}"
