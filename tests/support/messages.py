"""What a message must tell, whatever the words around it are."""

from __future__ import annotations

from kie_provider.client.errors import KieError


def assert_tells(said: object, *facts: str | type[KieError]) -> None:
    """Check that a message, or an error's, has each of these facts in it.

    :param facts: fields, values, what is allowed, codes, ids; a class stands for its summary, and for some advice
        where the class has one.
    """
    text = str(said)
    wanted = [fact if isinstance(fact, str) else fact.summary for fact in facts]
    wanted += [" -> " for fact in facts if not isinstance(fact, str) and fact.advice]
    missing = [fact for fact in wanted if fact not in text]
    assert not missing, f"{missing} not in: {text}"
