"""Keys and limits: who is let in, how often, and that keys are kept as hashes."""

import stat

import pytest

from components.schema.config import BadInput
from components.serving import keys
from components.serving.keys import Keys
from components.serving.limits import Limits


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_minute_holds_as_many_requests_as_allowed_and_the_wait_is_told():
    clock = Clock()
    limits = Limits(6, 0, clock)
    assert [limits.take("ann", 0) for _ in range(7)] == [0.0] * 6 + [10.0]
    assert limits.take("bob", 0) == 0.0  # his own
    clock.now = 9.9
    assert limits.take("ann", 0) == pytest.approx(0.1)
    clock.now = 10.0
    assert limits.take("ann", 0) == 0.0


def test_tokens_that_were_reserved_and_not_used_come_back():
    limits = Limits(0, 100, Clock())
    assert limits.take("ann", 80) == 0.0 and limits.take("ann", 40) == pytest.approx(12.0)
    limits.give_back("ann", 70)
    assert limits.take("ann", 40) == 0.0


def test_a_request_of_more_than_a_minute_s_tokens_passes_when_nothing_else_was_used_and_is_paid_for_afterwards():
    clock = Clock()
    limits = Limits(0, 100, clock)
    assert limits.take("ann", 250) == 0.0
    assert limits.take("ann", 1) == pytest.approx((1 + 150) * 0.6)


def test_a_key_may_have_limits_of_its_own_and_nought_is_none():
    limits = Limits(1, 1, Clock())
    assert [limits.take("ann", 50, (3, 0)) for _ in range(4)] == [0.0, 0.0, 0.0, 20.0]


def test_a_key_is_told_once_kept_as_a_hash_readable_by_its_owner_alone_and_revoked_at_once(tmp_path):
    path = tmp_path / "keys.json"
    text = keys.add(path, "ann", requests_per_minute=5)
    assert text not in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    there = Keys(path)
    name, key = there.known(text)
    assert (name, key.requests_per_minute, there.known(text + "x"), there.known("")) == ("ann", 5, None, None)
    with pytest.raises(BadInput, match="'ann' has a key already"):
        keys.add(path, "ann")
    other = keys.add(path, "bob")
    keys.remove(path, "ann")
    there._looked = -10.0  # a second later
    assert there.known(text) is None and there.known(other)[0] == "bob"
    with pytest.raises(BadInput, match=r"nobody is called 'carl'.*There is: bob"):
        keys.remove(path, "carl")


def test_keys_of_the_environment_may_have_names_and_short_ones_are_refused():
    there = Keys(None, "ann:a-key-of-some-length, another-key-of-some-length")
    assert there.known("a-key-of-some-length")[0] == "ann" and there.known("another-key-of-some-length")[0] == "key-2"
    assert not Keys(None, "") and there
    with pytest.raises(BadInput, match="key 1 of MODELYARD_SERVE_KEYS has 5 characters"):
        Keys(None, "ann:short")


def test_a_damaged_file_of_keys_is_told_and_does_not_open_the_door(tmp_path):
    path = tmp_path / "keys.json"
    text = keys.add(path, "ann")
    there = Keys(path)
    path.write_text("{")
    there._looked = -10.0
    assert there.known(text) and there.known("guess") is None  # what was read last counts
    with pytest.raises(BadInput, match=r"keys\.json cannot be read"):
        Keys(path)
