"""How often a stage saves."""

from itool.artifacts.save_pace import SavePace


def test_the_first_save_is_due_and_the_next_after_twenty_times_its_cost() -> None:
    pace = SavePace()
    assert pace.due(100.0)
    pace.saved(100.0, 102.0)
    assert not pace.due(141.9)
    assert pace.due(142.0)
