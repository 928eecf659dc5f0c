"""The benchmark measures what it says: its server takes the time of its rates, and every way finds the same scores."""

from __future__ import annotations

import json

import pytest

from benchmarks.hostile_corpus import read_corpus
from benchmarks.hostile_text import DEFENCES, RESULT, Gullible, attack_both, with_total
from benchmarks.model_server import Rates
from benchmarks.reward_path import OURS, RELEASED, measure, model_server


def test_the_floor_is_the_time_of_one_batch() -> None:
    rates = Rates(prefill=1000, step_s=0.01, step_s_per_sequence=0.001, batch=2)
    # Two of 30 run for 30 steps of 12 ms, then one of 10 for 10 steps of 11 ms; the prompts take 0.5 s.
    assert rates.floor([30, 10, 30], 500) == pytest.approx(0.5 + 30 * 0.012 + 10 * 0.011)


def test_ours_finds_the_scores_of_the_released_pattern_with_fewer_tokens() -> None:
    fast = Rates(prefill=10**6, step_s=0.0005, step_s_per_sequence=0.0)
    with model_server() as url:
        released, expected = measure(url, RELEASED, "half leave by step 2", 8, 2, fast)
        ours, found = measure(url, OURS, "half leave by step 2", 8, 2, fast)
    # Odd ones differ from step 1 or 2 on: 0 / 8 or 1 / 8.
    assert found == expected == [1, 0, 1, 0.125, 1, 0, 1, 0.125]
    assert ours.generated_tokens * 3 < released.generated_tokens
    assert ours.most_running > 2


def test_a_gullible_model_is_fooled_less_by_each_defence_and_least_by_all() -> None:
    for role, tallies in attack_both(Gullible(), rows=1, pairs=1).items():
        success = {name: with_total(tallies)["all attacks", name].succeeded for name in DEFENCES}
        assert all(tallies["no text", name].succeeded == 0 for name in DEFENCES)
        # A judge is told what to say in plain words, which only delimiters set apart.
        stops = ("escaping tags", "stripping") if role == "generator" else ("delimiting",)
        assert all(success[name] < success["none"] for name in stops)
        assert success["all"] < min(success[name] for name in ("delimiting", "escaping tags", "stripping"))
        for kind in ("tags", "control_tokens", "instruction"):
            assert tallies[kind, "all"].more == 0
    assert success["all"] == 0  # the judge's


def test_the_results_of_hostile_text_are_those_of_the_corpus() -> None:
    found = json.loads(RESULT.read_text(encoding="utf-8"))["results"]
    kinds = {attack.kind for attack in read_corpus()} - {"size"}
    for model in ("miniature", "gullible stub"):
        for role in ("generator", "judge"):
            tried = {
                (r["class"], r["defence"]) for r in found if (r["model"], r["role"]) == (model, role) and r["tried"]
            }
            assert tried >= {(kind, name) for kind in kinds for name in DEFENCES}
