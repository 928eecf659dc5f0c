"""The constant key set of every response, and the means that are logged."""

from __future__ import annotations

import math

from verl_rlkd.components import Components, component_means


def test_keys_are_prefixed_but_acc_and_values_are_finite_floats() -> None:
    info = Components(accuracy=1.0, exit_step=2.0).as_extra_info()
    assert [key for key in info if not key.startswith("rlkd/")] == ["acc"]
    assert info["acc"] == info["rlkd/accuracy"] == 1.0
    assert all(type(value) is float and math.isfinite(value) for value in info.values())


def test_verls_reserved_names_are_not_used() -> None:
    assert not {"reward", "score"} & set(Components().as_extra_info())


def test_means_leave_out_rows_in_which_a_component_had_no_part() -> None:
    rows = [
        Components(accuracy=1.0, structure=0.5, exit_step=2.0).as_extra_info(),
        Components(accuracy=0.0, structure=1.0).as_extra_info(),
        Components(accuracy_missing=1.0, structure_missing=1.0).as_extra_info(),
        Components(accuracy=1.0, failed=1.0, matcher_failed=1.0).as_extra_info(),
    ]
    means = component_means(rows)
    assert means["rlkd/accuracy/mean"] == 2 / 3  # rows 1, 2, 4: (1 + 0 + 1) / 3; row 3's gold cannot be verified
    assert means["rlkd/structure/mean"] == 0.75  # rows 1 and 2: (0.5 + 1) / 2; row 3 was not asked, row 4 failed
    assert means["rlkd/exit_step/mean"] == 2.0  # only row 1 exited
    assert means["rlkd/failed/mean"] == means["rlkd/matcher_failed/mean"] == 0.25
    assert means["rlkd/accuracy_missing/mean"] == 0.25


def test_the_share_of_pairs_that_cost_no_judgement_is_logged() -> None:
    # Of 8 + 2 pairs 3 + 2 are certain and 1 was judged before: a mean of the rows' shares would be 11 / 16.
    rows = [Components(compared=8, certain=3, reused=1), Components(compared=2, certain=2)]
    means = component_means([row.as_extra_info() for row in rows])
    assert (means["rlkd/certain/share"], means["rlkd/reused/share"]) == (0.5, 0.1)
    assert "rlkd/certain/share" not in component_means([Components(no_think_end=1.0).as_extra_info()])


def test_a_component_without_rows_is_left_out() -> None:
    means = component_means([Components(structure_missing=1.0).as_extra_info()])
    assert "rlkd/structure/mean" not in means
    assert means["rlkd/structure_missing/mean"] == 1.0
    assert component_means([]) == {}
