"""The benchmark measures what it says: its server takes the time of its rates, and every way finds the same scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.hostile_corpus import read_corpus
from benchmarks.hostile_models import Gullible
from benchmarks.hostile_text import DEFENCES, RESULT, attack_both, with_total
from benchmarks.model_server import Rates
from benchmarks.real_model import table as vllm_table
from benchmarks.reward_path import RESULTS, jobs_of, measure, model_server
from benchmarks.reward_table import HALF, OURS, RELEASED, RELEASED_LOOP, Measured, aims, table
from benchmarks.scale import PER_WORKER, logical_nodes, make_store, start_workers
from benchmarks.scale import Row as ScaleRow
from benchmarks.scale import measure as measure_scale
from benchmarks.scale import table as scale_table
from benchmarks.scale_paper import sizes_on_paper
from benchmarks.scale_paper import table as paper_table

README = RESULTS.parent / "README.md"


def test_the_floor_is_the_time_of_one_batch() -> None:
    rates = Rates(prefill=1000, step_s=0.01, step_s_per_sequence=0.001, batch=2)
    # Two of 30 run for 30 steps of 12 ms, then one of 10 for 10 steps of 11 ms; the prompts take 0.5 s.
    assert rates.floor([30, 10, 30], 500) == pytest.approx(0.5 + 30 * 0.012 + 10 * 0.011)


def test_replicas_take_the_time_of_one_with_their_share_of_the_load() -> None:
    rates = Rates(prefill=1000, step_s=0.01, step_s_per_sequence=0.001, batch=2)
    assert rates.times(2).floor([30, 10, 30] * 2, 1000) == pytest.approx(rates.floor([30, 10, 30], 500))


def test_ours_finds_the_scores_of_the_released_pattern_with_fewer_tokens() -> None:
    fast = Rates(prefill=10**6, step_s=0.0005, step_s_per_sequence=0.0)
    with model_server() as url:
        released, expected = measure(url, RELEASED, HALF, 8, 2, fast)
        ours, found = measure(url, OURS, HALF, 8, 2, fast)
    # Odd ones differ from step 1 or 2 on: 0 / 8 or 1 / 8.
    assert found == expected == [1, 0, 1, 0.125, 1, 0, 1, 0.125]
    assert ours.generated_tokens * 3 < released.generated_tokens
    assert ours.most_running > 2


def test_the_documents_say_what_was_measured() -> None:
    read = json.loads((RESULTS / "token_rate_server.json").read_text(encoding="utf-8"))
    rows = [Measured(**row) for row in read["rows"]]
    vllm = json.loads((RESULTS / "vllm.json").read_text(encoding="utf-8"))["rows"]
    lines = README.read_text(encoding="utf-8").splitlines()
    targets = aims(rows, read["seconds"])
    assert len(targets) == 9
    assert {*table(rows), *targets, *vllm_table(vllm)} <= set(lines)
    first = {row.way: row for row in reversed(rows) if (row.matching, row.responses) == (HALF, 64)}
    how_fast = (README.parents[1] / "README.md").read_text(encoding="utf-8").split("## How fast")[1].split("\n## ")[0]
    for way in (RELEASED_LOOP, RELEASED):
        assert f" {first[way.name].wall_s / first[OURS.name].wall_s:.1f} times" in " ".join(how_fast.split())


def test_the_documents_say_how_it_grows_and_what_that_means_for_larger_sizes() -> None:
    rows = [ScaleRow(**row) for row in json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))["rows"]]
    assert set(scale_table(rows)) <= set(README.read_text(encoding="utf-8").splitlines())
    sizes = sizes_on_paper()
    page = (README.parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    assert set(paper_table(sizes)) <= set(page.splitlines())
    for one in sizes[2:]:
        assert f"rlkd.max_in_flight={one.in_flight} reward.num_workers={one.workers}`" in page


def test_each_worker_of_a_node_has_the_teachers_and_its_own_share_of_the_servers(tmp_path: Path) -> None:
    make_store(tmp_path / "teachers.sqlite", jobs_of(HALF, 2 * PER_WORKER), teachers=10)
    with model_server() as first, model_server() as second, logical_nodes(1):
        workers, told = start_workers(tmp_path / "teachers.sqlite", 2, tmp_path)
        fast = Rates(prefill=10**6, step_s=0.0005, step_s_per_sequence=0.0, batch=64)
        row = measure_scale(workers, [first, second], fast)
    assert (row.workers, row.responses) == (2, 2 * PER_WORKER)
    assert row.most_requests < 2 * row.least_requests
    assert told["store_on_a_node_s"] > 0


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
