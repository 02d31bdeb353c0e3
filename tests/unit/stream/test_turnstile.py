from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from worker.stream.turnstile import Turnstile


@given(st.lists(st.sampled_from("abc") | st.integers(0, 2)))
def test_one_at_a_time_in_order_and_nobody_is_forgotten(steps):
    """A letter enters; a number lets the upload with that letter's index leave, if one is in."""
    turnstile: Turnstile[int] = Turnstile()
    entered, went, inside = defaultdict(list), defaultdict(list), {}
    for number, step in enumerate(steps):
        if isinstance(step, str):
            entered[step].append(number)
            if turnstile.enter(step, number):
                assert step not in inside
                inside[step] = number
                went[step].append(number)
        elif (key := "abc"[step]) in inside:
            following = turnstile.leave(key)
            del inside[key]
            if following is not None:
                inside[key] = following
                went[key].append(following)
    for key in list(inside):
        while (following := turnstile.leave(key)) is not None:
            went[key].append(following)
    assert went == entered
