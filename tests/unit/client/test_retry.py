import random
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client import errors, retry
from kie_provider.client.errors import KieError

PASSING = [errors.KieRateLimitError, errors.KieMaintenanceError]
DOUBTFUL_OR_FINAL = [
    KieError,
    errors.KieAuthError,
    errors.KieInsufficientCreditsError,
    errors.KieValidationError,
    errors.KieNotFoundError,
    errors.KieQuotaError,
    errors.KieServerError,
    errors.KieFeatureDisabledError,
    errors.KieTransportError,  # may have arrived
    errors.KieSubmitUnknownError,
    errors.KieTaskFailedError,
    errors.KieTaskTimeoutError,
    errors.KieResultError,
]


def never_left():
    return errors.KieTransportError("refused", may_have_arrived=False)


def test_backoff_doubles_to_its_limit():
    assert [retry.backoff(n) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert retry.backoff(10**6, first=3, longest=60) == 60


@pytest.mark.parametrize("error_class", DOUBTFUL_OR_FINAL)
def test_createtask_is_not_sent_again(error_class):
    assert retry.submit_delay(error_class("x"), 1, 0.0) is None
    assert retry.submit_delay(error_class("x", retry_after=1.0), 1, 0.0) is None


@pytest.mark.parametrize("error", [*(e("x") for e in PASSING), never_left()])
def test_createtask_is_sent_again_until_twelve_seconds_are_over(error):
    attempt, waited, delays = 1, 0.0, []
    while (delay := retry.submit_delay(error, attempt, waited)) is not None:
        delays.append(delay)
        attempt, waited = attempt + 1, waited + delay
    assert delays == [0.5, 1, 2, 4, 4.5]


@given(st.lists(st.floats(0, 20), min_size=30, max_size=30), st.randoms())
def test_createtask_never_waits_more_than_twelve_seconds(retry_afters, rng):
    attempt, waited = 1, 0.0
    for retry_after in retry_afters:
        error = rng.choice([errors.KieRateLimitError("x", retry_after=retry_after), never_left()])
        delay = retry.submit_delay(error, attempt, waited)
        if delay is None:
            break
        attempt, waited = attempt + 1, waited + delay
    else:
        pytest.fail("it would go on for ever")
    assert waited <= 12


def test_createtask_honours_retry_after_within_its_patience():
    assert retry.submit_delay(errors.KieRateLimitError("x", retry_after=6.0), 1, 0.0) == 6.0
    assert retry.submit_delay(errors.KieRateLimitError("x", retry_after=10.0), 1, 0.0) == 10.0
    assert retry.submit_delay(errors.KieRateLimitError("x", retry_after=6.0), 2, 6.5) is None
    assert retry.submit_delay(errors.KieRateLimitError("x", retry_after=12.1), 1, 0.0) is None
    assert retry.submit_delay(errors.KieRateLimitError("x", retry_after=0.0), 1, 0.0) == 0.5


@pytest.mark.parametrize(
    ("error_class", "again"),
    [
        (errors.KieRateLimitError, True),
        (errors.KieMaintenanceError, True),
        (errors.KieServerError, True),
        (errors.KieTransportError, True),
        (errors.KieAuthError, False),
        (errors.KieInsufficientCreditsError, False),
        (errors.KieValidationError, False),
        (errors.KieNotFoundError, False),
        (errors.KieQuotaError, False),
        (errors.KieFeatureDisabledError, False),
        (errors.KieResultError, False),
        (KieError, False),
    ],
)
def test_which_look_ups_are_repeated(error_class, again):
    assert (retry.lookup_delay(error_class("x"), 1) is not None) is again


def test_look_ups_are_sent_four_times_at_most():
    assert [retry.lookup_delay(errors.KieServerError("x"), n) for n in (1, 2, 3, 4)] == [0.5, 1, 2, None]


def test_look_ups_honour_retry_after_up_to_thirty_seconds():
    assert retry.lookup_delay(errors.KieRateLimitError("x", retry_after=30.0), 1) == 30.0
    assert retry.lookup_delay(errors.KieRateLimitError("x", retry_after=30.1), 1) is None
    assert retry.lookup_delay(errors.KieRateLimitError("x", retry_after=0.1), 1) == 0.5


@given(st.floats(0, 1e6), st.integers())
def test_jitter_stays_within_ten_percent(seconds, seed):
    assert seconds * 0.9 <= retry.jitter(seconds, uniform=random.Random(seed).uniform) <= seconds * 1.1


@given(st.floats(0, 1e6), st.integers())
def test_jitter_never_comes_back_before_retry_after(seconds, seed):
    assert retry.jitter(seconds, at_least=seconds, uniform=random.Random(seed).uniform) >= seconds


NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("7", 7.0),
        ("2.5", 2.5),
        ("-3", 0.0),
        ("soon", None),
        ("nan", None),
        ("-inf", 0.0),
        ("inf", 600.0),
        ("1e999", 600.0),
        ("1e300", 600.0),
        ("1000000000", 600.0),
        ("600.5", 600.0),
        ("9" * 5000, 600.0),
        (formatdate(NOW + 1e9, usegmt=True), 600.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 600.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Mon, 32 Jan 2026 00:00:00 GMT", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2026 00:00:00 +99999999", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert retry.parse_retry_after(value, NOW) == seconds


@given(
    st.text() | st.text(alphabet="MonJan0123456789:,+- GMT") | st.from_regex(r"[A-Z][a-z]{2}, [-+0-9: JanGMT]{1,30}")
)
def test_no_retry_after_breaks_the_parser(value):
    seconds = retry.parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= 600
