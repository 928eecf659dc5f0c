"""What verl is to host is refused before models load, with the numbers, where it cannot work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig
from runs import compose
from stub_server import StubServer

from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import ConfigError
from verl_rlkd.integration.hosting import check_adapters, check_contexts, check_parallel, check_sleep
from verl_rlkd.integration.run_config import problems, rlkd_config
from verl_rlkd.integration.versions import KEY, check_versions, differences, installed, of_nodes, write_versions

HOSTED = ("reward.reward_model.enable=true", "reward.reward_model.model_path=Qwen/Qwen2.5-7B-Instruct")
ROLLOUT, REWARD = "actor_rollout_ref.rollout", "reward.reward_model.rollout"
VLLM = f"+{REWARD}.engine_kwargs.vllm"
POOL = ("reward.reward_model.enable_resource_pool=true", "reward.reward_model.nnodes=1",
        "reward.reward_model.n_gpus_per_node=2")  # fmt: skip


def run(*overrides: str) -> tuple[DictConfig, RlkdConfig]:
    config = compose(*HOSTED, *overrides)
    return config, rlkd_config(config)


def refused(config: DictConfig) -> str:
    """All that a run's own checks say, as doctor prints them."""
    lines = [str(problem) for problem in problems(config)]
    assert not [line for line in lines if "\n" in line]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (f"{ROLLOUT}.tensor_model_parallel_size=3",),
            f"{ROLLOUT}.tensor_model_parallel_size=3 does not divide the 8 GPUs of trainer.nnodes=1 x "
            "trainer.n_gpus_per_node=8; give 1, 2, 4 or 8 in all",
        ),
        ((f"{REWARD}.tensor_model_parallel_size=3",), "tensor_model_parallel_size=3 does not divide the 8 GPUs"),
        (
            (*POOL, f"{REWARD}.tensor_model_parallel_size=4"),
            f"{REWARD}.tensor_model_parallel_size=4 does not divide the 2 GPUs of reward.reward_model.nnodes=1 x",
        ),
        (
            (f"{REWARD}.tensor_model_parallel_size=8",),
            f"{REWARD}.tensor_model_parallel_size is 8, which does not divide the 28 attention heads of "
            "Qwen/Qwen2.5-7B-Instruct; give 1, 2, 4 or 7",
        ),
        (
            ("actor_rollout_ref.actor.ulysses_sequence_parallel_size=3",),
            "actor_rollout_ref.actor.ulysses_sequence_parallel_size=3 does not divide the 8 GPUs",
        ),
        (
            ("model_engine=megatron", "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=4",
             "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=4"),
            "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=4 x "
            "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=4 does not divide the 8 GPUs",
        ),
        (
            (f"{ROLLOUT}.nnodes=1", f"{ROLLOUT}.n_gpus_per_node=3", "actor_rollout_ref.hybrid_engine=false"),
            f"{ROLLOUT}.tensor_model_parallel_size=2 does not divide the 3 GPUs of {ROLLOUT}.nnodes x n_gpus_per_node",
        ),
    ],
    ids=["rollout", "GSRM", "pool", "heads", "ulysses", "megatron", "rollout apart"],
)  # fmt: skip
def test_parallel_sizes_that_do_not_divide(overrides: tuple[str, ...], message: str) -> None:
    config, _ = run(*overrides)
    assert message in refused(config)


def test_sizes_that_divide_pass() -> None:
    check_parallel(*run(f"{ROLLOUT}.tensor_model_parallel_size=4", f"{REWARD}.tensor_model_parallel_size=2"))
    check_parallel(*run(*POOL, "trainer.n_gpus_per_node=6"))


def test_a_gsrm_shorter_than_what_is_sent() -> None:
    config, _ = run(f"{REWARD}.max_model_len=16384")
    assert "max_model_len is 16384, and rlkd.generator.context_tokens is 32768: the server would" in refused(config)


def test_responses_longer_than_the_gsrms_room() -> None:
    config, _ = run("data.max_response_length=22000")
    assert (
        "rlkd.generator.context_tokens 32768 - max_tokens 10240 leave 22528 tokens, and a response may have "
        "data.max_response_length=22000, beside 857 of the GSRM's own prompt"
    ) in refused(config)
    assert "set rlkd.generator.context_tokens=33792" in refused(config)
    check_contexts(*run("data.max_response_length=21000"))
    # Without structures nobody reads them.
    check_contexts(*run("data.max_response_length=22000", "rlkd.weights.structure=0"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B", f"{ROLLOUT}.max_model_len=5120"),
            f"{ROLLOUT}.max_model_len is 5120, and Qwen/Qwen2.5-Math-7B has 4096 positions (max_position_embeddings)",
        ),
        (
            (f"{REWARD}.max_model_len=65536",),
            f"{REWARD}.max_model_len is 65536, and Qwen/Qwen2.5-7B-Instruct has 32768 positions",
        ),
    ],
)
def test_engines_longer_than_their_model(overrides: tuple[str, ...], message: str) -> None:
    config, _ = run(*overrides)
    assert message in refused(config)
    longer = "+actor_rollout_ref.model.override_config.max_position_embeddings=16384"
    check_contexts(*run("actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B", f"{ROLLOUT}.max_model_len=5120", longer))


def test_an_external_gsrm_shorter_than_what_is_sent() -> None:
    from verl_rlkd.integration.run_config import check_run

    with StubServer(context=4096) as server:
        at = (f"rlkd.generator.base_url={server.base_url}", "rlkd.generator.model=gsrm")
        with pytest.raises(ConfigError) as short:
            check_run(compose(*at))
    assert str(short.value) == (
        f"rlkd.generator.context_tokens is 32768, and gsrm at {server.base_url} has a context of 4096 tokens: it would "
        "refuse long requests; set rlkd.generator.context_tokens=4096 (and max_tokens below it), or serve it with a "
        "longer one"
    )


def test_a_pool_that_would_sleep_for_ever() -> None:
    config, _ = run(*POOL)
    assert "verl would put the GSRM to sleep at the start and never wake it" in refused(config)
    check_sleep(*run(*POOL, f"{REWARD}.free_cache_engine=false"))
    check_sleep(*run())


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "r": 32}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_of_the_right_base_and_rank_pass(adapter: Path, tmp_path: Path) -> None:
    served = (f"{VLLM}.enable_lora=true", f"{VLLM}.max_lora_rank=32", "rlkd.generator.model=gsrm")
    check_adapters(*run(*served, f"{VLLM}.lora_modules=['gsrm={adapter}']"))
    as_mapping = f"{VLLM}.lora_modules=[{{name: gsrm, path: {adapter}}}]"
    check_adapters(*run(*served, as_mapping))
    # The base under another path: a folder of that name, and a snapshot in the hub's cache.
    for path in ("/elsewhere/Qwen2.5-7B-Instruct", "/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/0a1b"):
        here = f"reward.reward_model.model_path={path}"
        check_adapters(*run(*served, here, f"{VLLM}.lora_modules=['gsrm={adapter}']"))
    # As verl's own merger writes it.
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": null, "r": 32}')
    check_adapters(*run(*served, f"{VLLM}.lora_modules=['gsrm={adapter}']"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("enable_lora=true",), "has rank 32, above {REWARD}.engine_kwargs.vllm.max_lora_rank=16; set"),
        (("max_lora_rank=32",), "lora_modules is given without enable_lora; set"),
        (
            ("enable_lora=true", "max_lora_rank=48"),
            "max_lora_rank is 48; vLLM takes 1, 8, 16, 32, 64, 128, 256, 320, 512",
        ),
        (
            ("enable_lora=true", "max_lora_rank=64", "model_path=Qwen/Qwen2.5-7B"),
            "was trained on Qwen/Qwen2.5-7B-Instruct, and the base that it would be served on is Qwen/Qwen2.5-7B; give",
        ),
        (
            ("enable_lora=true", "max_lora_rank=64", "rlkd.generator.model=grsm"),
            "rlkd.generator.model is 'grsm', and verl's reward model serves Qwen/Qwen2.5-7B-Instruct, gsrm",
        ),
    ],
    ids=["rank", "not enabled", "rank of vLLM", "base", "name"],
)
def test_adapters_that_cannot_be_served(adapter: Path, overrides: tuple[str, ...], message: str) -> None:
    full = [
        o if o.startswith("rlkd") else f"reward.reward_model.{o}" if o.startswith("model_path") else f"{VLLM}.{o}"
        for o in overrides
    ]
    config, _ = run(f"{VLLM}.lora_modules=['gsrm={adapter}']", *full)
    assert message.replace("{REWARD}", REWARD) in refused(config)


def test_a_students_adapter_of_a_higher_rank_and_one_that_is_not_there(adapter: Path, tmp_path: Path) -> None:
    student = ("actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct", "actor_rollout_ref.model.lora_rank=16")
    config, _ = run(*student, f"actor_rollout_ref.model.lora_adapter_path={adapter}")
    assert (
        "has rank 32, above actor_rollout_ref.model.lora_rank=16; set actor_rollout_ref.model.lora_rank=32"
        in refused(config)
    )
    config, _ = run(*student, f"actor_rollout_ref.model.lora_adapter_path={tmp_path}/none")
    assert f"{tmp_path}/none is no folder; give the one that holds adapter_config.json" in refused(config)


# ---- versions ----


def test_other_versions_than_the_drivers_are_refused_in_the_trainer() -> None:
    config, _ = run()
    check_versions(config)
    write_versions(config)
    assert config.trainer.v1.rlkd_versions == installed()
    check_versions(config)
    config.trainer.v1.rlkd_versions.verl = "0.9.0"
    with pytest.raises(ConfigError) as other:
        check_versions(config)
    here = installed()["verl"]
    assert (
        str(other.value) == f"the trainer's process has verl {here}, the driver 0.9.0; install the same on every node"
    )
    assert KEY == "trainer.v1.rlkd_versions"


def test_differences_name_place_and_both_versions() -> None:
    driver = {"verl": "0.9.1", "verl-rlkd": "0.1.0"}
    assert differences(driver, {"node a": driver}) == ""
    told = differences(driver, {"node a": driver, "node b": {"verl": "0.9.1", "verl-rlkd": "none"}})
    assert told == "node b has verl-rlkd none, the driver 0.1.0"


@pytest.fixture
def two_nodes() -> Iterator[None]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.usefixtures("two_nodes")
def test_every_node_of_a_cluster_is_asked() -> None:
    assert list(of_nodes().values()) == [installed(), installed()]
