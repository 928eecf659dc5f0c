"""``verl_rlkd.plan``: published sizes, sums worked by hand, and advice that makes a run fit."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from verl_rlkd.plan.advice import advise
from verl_rlkd.plan.gpus import GPUS, Gpu
from verl_rlkd.plan.memory import ASLEEP, CONTEXT, Layout, Phase, Server, Trainer, phases, shortages, tight
from verl_rlkd.plan.models import KNOWN, ModelShape, known_shape, shape_from_config
from verl_rlkd.plan.timing import Rates, Workload, cost_per_1000_steps, generation_seconds, step_time
from verl_rlkd.report.plots import COLOURS, save_figure, stacked_figure

PACKAGE = Path(__file__).parents[1] / "verl_rlkd"
H100 = GPUS["H100"]
SEVEN = KNOWN["Qwen2.5-7B"]


def trainer(**values: object) -> Trainer:
    base = Trainer(shape=SEVEN, engine="fsdp", gpus=8, tokens=16384, forward_tokens=16384)
    return replace(base, **values)  # type: ignore[arg-type]


def server(**values: object) -> Server:
    base = Server(
        shape=SEVEN, gpus=8, tensor_parallel=1, share=0.5, context=4096, sequences=256, batched_tokens=8192,
        sleeps=True, graphs=False,
    )  # fmt: skip
    return replace(base, **values)  # type: ignore[arg-type]


def layout(**values: object) -> Layout:
    return replace(Layout(trainer=trainer(), rollout=server(), reward=server()), **values)  # type: ignore[arg-type]


def phase(made: Layout, name: str, gpu: Gpu = H100) -> Phase:
    (found,) = (phase for phase in phases(made, gpu) if phase.name == name)
    return found


@pytest.mark.parametrize("path", sorted((PACKAGE / "plan").glob("*.py")), ids=lambda path: path.stem)
def test_plan_is_pure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            root, _, rest = node.module.partition(".")
            assert root in sys.stdlib_module_names or rest.startswith("plan."), node.module


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Totals that the hub shows for the models' files.
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-Math-1.5B", 1_543_714_304),
        ("Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("Qwen/QwQ-32B", 32_763_876_352),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("/models/DeepSeek-R1-Distill-Qwen-7B/", 7_615_616_512),
    ],
)
def test_known_models_have_their_published_number_of_parameters(name: str, parameters: int) -> None:
    shape = known_shape(name)
    assert shape is not None
    assert shape.parameters == parameters


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("Qwen2.5-7B", 131072),
        ("Qwen2.5-7B-Instruct", 32768),
        ("Qwen2.5-Math-7B", 4096),
        ("Qwen2.5-Math-7B-Instruct", 4096),
    ],
)
def test_known_models_have_their_positions(name: str, positions: int) -> None:
    shape = known_shape(name)
    assert shape is not None
    assert shape.positions == positions


def test_a_shape_is_read_from_a_config() -> None:
    config = {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }  # fmt: skip
    assert shape_from_config(config).parameters == 134_515_008  # SmolLM2-135M
    # 2 x 30 layers x 3 heads x 64 x 2 bytes
    assert shape_from_config(config).kv_bytes == 23_040
    with pytest.raises(ValueError, match="no vocab_size"):
        shape_from_config({key: value for key, value in config.items() if key != "vocab_size"})
    with pytest.raises(ValueError, match="model_type is 'mamba'; sizes are known of llama"):
        shape_from_config({**config, "model_type": "mamba"})
    assert known_shape("someone/else") is None


def test_an_adapter_has_rank_times_inputs_and_outputs() -> None:
    small = ModelShape(
        hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocabulary=10, positions=16
    )
    # q and o: 8 + 8, k and v: 8 + 4, gate, up and down: 8 + 16; two layers, rank 3.
    assert small.lora_parameters(3) == 2 * 3 * (2 * 16 + 2 * 12 + 3 * 24)


def test_fsdp_takes_16_bytes_per_parameter_over_all_gpus_and_megatron_6_and_12_over_all() -> None:
    count = SEVEN.parameters
    fsdp = trainer()
    assert fsdp.weights() + fsdp.gradients() + fsdp.optimizer() == 16 * count / 8
    half = trainer(weight_bytes=2)
    assert half.weights() + half.gradients() + half.optimizer() == 8 * count / 8
    megatron = trainer(engine="megatron", tensor_parallel=4)
    assert megatron.weights() + megatron.gradients() == 6 * count / 4
    assert megatron.optimizer() == 12 * count / 8
    lora = trainer(lora_rank=32)
    assert (lora.weights(), lora.optimizer()) == (4 * count / 8, 8 * SEVEN.lora_parameters(32) / 8)


def test_what_is_on_the_gpu_in_each_phase() -> None:
    made = layout()
    assert [found.name for found in phases(made, H100)] == ["rollout", "reward", "log-probs", "update", "weight sync"]
    state = 12 * SEVEN.parameters / 8
    for name in ("rollout", "reward"):
        # The engine that works has its share, the other one sleeps.
        assert phase(made, name).total == pytest.approx(state + 0.5 * H100.memory + 2 * CONTEXT + ASLEEP)
    assert "gradients" in phase(made, "update").parts
    assert not any("KV cache" in part for part in phase(made, "update").parts)
    assert phase(made, "weight sync").parts["rollout's weights"] == 2 * SEVEN.parameters
    offloaded = layout(trainer=trainer(offload_parameters=True, offload_optimizer=True))
    assert phase(offloaded, "rollout").total == pytest.approx(phase(made, "rollout").total - state)
    assert phase(offloaded, "update").total == pytest.approx(phase(made, "update").total)


def test_an_engine_that_does_not_sleep_is_in_every_phase() -> None:
    made = layout(reward=server(sleeps=False))
    for found in phases(made, H100):
        assert "GSRM's KV cache" in found.parts, found.name
    assert phase(made, "rollout").total == pytest.approx(12 * SEVEN.parameters / 8 + H100.memory + 3 * CONTEXT)


def test_engines_with_gpus_of_their_own_are_counted_there() -> None:
    made = layout(
        trainer=trainer(gpus=4), rollout=server(gpus=2), reward=server(gpus=2), rollout_apart=True, reward_apart=True
    )
    assert made.gpus == 8
    assert [(found.name, found.pool) for found in phases(made, H100)] == [
        ("log-probs", "training"), ("update", "training"), ("rollout", "rollout"), ("reward", "reward"),
    ]  # fmt: skip
    assert phase(made, "update").parts["contexts"] == CONTEXT
    assert layout(reward=None).gpus == 8


def test_parts_and_groups_have_the_same_sum() -> None:
    for made in (layout(), layout(trainer=trainer(engine="megatron", reference=True, reference_offloaded=False))):
        for found in phases(made, H100):
            assert sum(found.groups.values()) == pytest.approx(found.total)


def test_what_does_not_fit_is_told_with_numbers() -> None:
    assert shortages(layout(), H100) == []
    (line,) = shortages(layout(rollout=server(share=0.9)), H100)
    assert line == "rollout on the training GPUs: 84.9 GiB of 79.1 GiB"
    # 0.2 x 79.1 GiB - 15.23 GB of weights - 2 x 8192 x (6 x 3584 + 3 x 18944) - 8 x 256 x 152064 leave 0.16 GB, and a
    # token takes 2 x 2 x 28 layers x 4 heads x 128 = 57344 bytes.
    small = server(share=0.2, context=32768)
    (line,) = shortages(layout(reward=small), H100)
    assert line == "the GSRM's KV cache holds 2,798 tokens, fewer than one sequence's 32,768"
    assert small.kv_tokens(H100) == 2798


def test_what_fits_with_less_than_a_tenth_to_spare_is_told() -> None:
    assert tight(layout(), H100) == []
    assert tight(layout(rollout=server(share=0.8)), H100) == ["rollout on the training GPUs: 77.0 GiB of 79.1 GiB"]
    assert tight(layout(rollout=server(share=0.9)), H100) == []  # does not fit


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize(
    "made",
    [
        layout(rollout=server(share=0.9)),
        layout(reward=server(share=0.2, context=32768)),
        layout(trainer=trainer(tokens=65536, checkpointing=False)),
        layout(reward=server(sleeps=False), rollout=server(sleeps=False)),
        layout(trainer=trainer(engine="megatron", tensor_parallel=4)),
        layout(trainer=trainer(shape=KNOWN["Qwen2.5-32B"]), rollout=server(shape=KNOWN["Qwen2.5-32B"])),
    ],
    ids=["share", "KV cache", "activations", "no sleep", "megatron", "32B"],
)
def test_the_advice_makes_it_fit_or_says_that_it_does_not(made: Layout, gpu: Gpu) -> None:
    changes, enough = advise(made, gpu)

    def after(kept: list[int]) -> Layout:
        changed = made
        for i in kept:
            part = replace(getattr(changed, changes[i].part), **changes[i].values)
            changed = replace(changed, **{changes[i].part: part})
        return changed

    everything = list(range(len(changes)))
    assert (not shortages(after(everything), gpu)) == enough
    if enough:
        for i in everything:
            assert shortages(after([j for j in everything if j != i]), gpu), f"{changes[i]} was not needed"


def test_the_advice_names_the_cheapest_setting() -> None:
    changes, enough = advise(layout(rollout=server(share=0.9)), H100)
    assert enough
    assert [change.setting for change in changes] == ["actor_rollout_ref.rollout.gpu_memory_utilization=0.8"]
    assert advise(layout(), H100) == ((), True)


UNIT = Gpu(name="unit", memory_gib=1000, tflops=1000, bandwidth_gbs=1000, price=1.0)
FULL = Rates(decode=1.0, prefill=1.0, train=1.0, host_gbs=1e9, sync_gbs=1e9)


def test_generation_reads_weights_once_per_token_and_the_cache_of_each() -> None:
    one = server(gpus=1, sequences=10)
    weights, per_token = 2 * SEVEN.parameters / 1e12, SEVEN.kv_bytes / 1e12
    # 10 sequences of 100 + 50 tokens at once: 50 steps; each token sees 100 + 25 before it. Prompts: 2 x P x 1000.
    expected = 50 * weights + 10 * 50 * 125 * per_token + 2 * SEVEN.parameters * 1000 / 1e15
    measured = generation_seconds(one, UNIT, FULL, sequences=10, prompt=100, written=50, longest=50)
    assert measured == pytest.approx(expected)
    # Twice as many take two waves; twice as many engines take half.
    twice = generation_seconds(one, UNIT, FULL, sequences=20, prompt=100, written=50, longest=50)
    assert twice == pytest.approx(2 * expected)
    two = generation_seconds(replace(one, gpus=2), UNIT, FULL, sequences=20, prompt=100, written=50, longest=50)
    assert two == pytest.approx(expected)


def work(mode: Any = "sync") -> Workload:
    return Workload(
        mode=mode, prompts=64, group=4, prompt_tokens=100, response_tokens=500, response_limit=1000,
        structure_limit=4096,
    )  # fmt: skip


def test_training_takes_8_operations_per_parameter_and_token_with_recomputing() -> None:
    seconds = step_time(layout(reward=None), UNIT, work(), FULL)
    # 256 responses of 600 tokens on 8 GPUs of 1e15: forward is 2 operations, an update with recomputing 8.
    forward = 2 * SEVEN.parameters * 256 * 600 / 8e15
    assert seconds.phases["log-probs"] == pytest.approx(forward)
    assert seconds.phases["update"] == pytest.approx(4 * forward)
    assert seconds.reward_share == 0
    assert "reward" not in seconds.phases
    with_reference = step_time(layout(reward=None, trainer=trainer(reference=True)), UNIT, work(), FULL)
    assert with_reference.phases["log-probs"] == pytest.approx(2 * forward)


def test_phases_run_one_after_the_other_or_beside_each_other() -> None:
    together = step_time(layout(), H100, work(), Rates())
    assert together.total == pytest.approx(sum(together.phases.values()))
    assert together.reward_share == pytest.approx(together.phases["reward"] / together.total)
    # With GPUs of its own the reward hides behind the rollout.
    apart = step_time(layout(reward_apart=True), H100, work(), Rates())
    training = sum(apart.phases[name] for name in ("log-probs", "update", "weight sync"))
    assert apart.total == pytest.approx(max(apart.phases["rollout"], apart.phases["reward"]) + training)
    everywhere = layout(reward_apart=True, rollout_apart=True)
    separate = step_time(everywhere, H100, work("separate_async"), Rates())
    longest = max(separate.phases["rollout"], separate.phases["reward"])
    assert separate.total == pytest.approx(
        max(longest, sum(separate.phases.values()) - separate.phases["rollout"] - separate.phases["reward"])
    )
    # Nobody waits for the longest response there.
    assert step_time(layout(), H100, work("colocate_async"), Rates()).phases["rollout"] < together.phases["rollout"]


def test_cost_is_gpus_times_hours() -> None:
    assert cost_per_1000_steps(layout(), 36.0, 2.0) == pytest.approx(10 * 8 * 2.0)


def test_stacked_bars_show_their_parts_and_the_limit(tmp_path: Path) -> None:
    bars = {"rollout": {"actor": 10.0, "cache": 30.0}, "update": {"actor": 14.0}}
    figure = stacked_figure(bars, title="memory", x_label="GiB", limit=79.0)
    widths = [bar.get_width() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert widths == [10.0, 14.0, 30.0, 0.0]
    assert [bar.get_x() for bar in figure.axes[0].patches] == [0.0, 0.0, 10.0, 14.0]  # type: ignore[attr-defined]
    assert figure.axes[0].lines[0].get_xdata()[0] == 79.0  # type: ignore[index]
    save_figure(figure, tmp_path / "memory.png")
    with Image.open(tmp_path / "memory.png") as image:
        found = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=2**24) or ()}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:2]} <= found
