"""The API key of client tests, and a check that it is in nothing that is ever shown or stored."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from kie_provider.client.errors import KieError

KEY = "0123456789abcdef0123456789abcdef"


def assert_no_key(error: BaseException) -> None:
    """Check everything of an error that is ever shown or stored, and of what has caused it."""
    shown = "".join(traceback.format_exception(error))
    each: BaseException | None = error
    while each is not None:
        to_dict = getattr(each, "to_dict", dict)
        shown += f"{each} {each!r} {each.args!r} {to_dict()!r} {vars(each)!r}"
        each = each.__cause__
    assert KEY not in shown
    assert f"Bearer {KEY[:4]}" not in shown


def error_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> KieError:
    """Return the error of a call, which must not show the key."""
    with pytest.raises(KieError) as caught:
        call(*args, **kwargs)
    assert_no_key(caught.value)
    return caught.value
