"""The miniature, killed at random points and started again until it ends: nothing may be lost, doubled or judged twice.

Run: VERL_PLATFORM=cpu python -m recipes.miniature.preemption outputs/preemption --kill trainer worker gsrm --seed 0
Prints one JSON line per kill, then what does not hold; exits with 1 if anything does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import psutil

from verl_rlkd.report.runs import json_lines

RECIPES = Path(__file__).parents[1]
OWN_RAY = "++ray_kwargs.ray_init.address=local"
"""Whatever other cluster this machine has."""
WAIT_S = 3600.0
"""For a start, a step or an end on a busy machine."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", nargs="+", choices=[*VICTIMS], default=[*VICTIMS], help="one after the other")
    parser.add_argument("--steps", type=int, help="of the run; at least two more than kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work = arguments.folder.resolve()
    subprocess.run([sys.executable, "-m", "recipes.miniature.prepare", str(work)], check=True)
    steps = max(arguments.steps or 0, len(arguments.kill) + 2)
    run = work / "run"
    recipe = [
        f"work={work}", f"models={RECIPES / 'miniature' / 'models'}", f"trainer.total_training_steps={steps}",
        "trainer.save_freq=1", "trainer.test_freq=-1", "trainer.val_before_train=false", "trainer.logger=[file]",
        "data.train_batch_size=4", "actor_rollout_ref.rollout.n=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        f"rlkd.matcher.cache_dir={run}/cache", "rlkd.matcher.rejudge_share=0", "rlkd.retry.max_attempts=2",
    ]  # fmt: skip
    wrong = preempt(recipe, run, arguments.kill, steps, Random(arguments.seed))
    wrong += broken(run, uninterrupted(recipe, steps, "rlkd_miniature"), group=4)
    print("\n".join(wrong) or "every step once, in the order of an uninterrupted run, no verdict asked for twice")
    sys.exit(1 if wrong else 0)


def preempt(recipe: Sequence[str], run: Path, victims: Sequence[str], steps: int, random: Random) -> list[str]:
    """Run to the end through all kills; what the kills themselves did wrong."""
    wrong: list[str] = []
    held: dict[str, float] = {}
    process = start(recipe, run, "rlkd_miniature")
    try:
        for number, victim in enumerate(victims):
            after, share = random.randrange(number, steps - len(victims) + number - 1), random.random()
            wait_until(partial(_is_in_step, run, after + 1), process)
            # Scoring has begun; from there up to a step's time on.
            seconds = share * step_seconds(run)
            time.sleep(seconds)
            held, reached = {**cached(run), **held}, checkpoint(run)
            VICTIMS[victim](process)
            # A reward worker comes back by itself; without its GSRM a run stops, with a message.
            code = None if victim == "worker" else process.wait(WAIT_S)
            told = {"killed": victim, "checkpoint": reached, "seconds after scoring began": round(seconds, 1)}
            told["exit code"] = code
            print(json.dumps(told), flush=True)
            if code is not None:
                kill_tree(process)
                process = start(recipe, run, "rlkd_miniature")
        if code := process.wait(WAIT_S):
            wrong.append(f"the last start ended with code {code}; see {run}/train.log")
    finally:
        kill_tree(process)
    return wrong + judged_again(run, held)


def start(recipe: Sequence[str], run: Path, name: str) -> subprocess.Popen[bytes]:
    """verl's ``main_ppo`` with this recipe; its output is added to ``<run>/train.log``."""
    run.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", str(RECIPES), "--config-name", name,
        OWN_RAY,
    ]  # fmt: skip
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(run / "metrics.jsonl"), "TOKENIZERS_PARALLELISM": "false"}
    with (run / "train.log").open("ab") as log:
        return subprocess.Popen([*command, *recipe], env=environment, stdout=log, stderr=subprocess.STDOUT)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the trainer and all that it started, as when a node goes: Ray, its workers, their servers."""
    everything = descendants(process)
    process.kill()
    # Ray itself first, or it would start again what dies.
    for one in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(everything, timeout=60)


def kill_worker(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a reward worker."""
    _named(process, "RewardLoopWorker").kill()


def kill_gsrm(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to verl's server of the GSRM and its engine; verl starts it before that of the student."""
    server = _named(process, "ray::vLLMHttpServer")
    for one in (*server.children(recursive=True), server):
        one.kill()


VICTIMS: Mapping[str, Callable[[subprocess.Popen[bytes]], None]] = {
    "trainer": kill_tree,
    "worker": kill_worker,
    "gsrm": kill_gsrm,
}


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Everything that a run started, the first first."""
    try:
        found = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return sorted(found, key=lambda one: one.create_time() if one.is_running() else 0.0)


def _named(process: subprocess.Popen[bytes], title: str) -> psutil.Process:
    return next(one for one in descendants(process) if any(title in part for part in one.cmdline()))


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    """Return when ``condition()`` holds.

    Raises:
        RuntimeError: The run ended before it did, or it took too long.
    """
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run ended (code {process.poll()}) or stood still before it was to be killed")
        time.sleep(0.1)


def _is_in_step(run: Path, step: int) -> bool:
    return checkpoint(run) >= step - 1 and bool(recorded(run, step))


def checkpoint(run: Path) -> int:
    """The last whole checkpoint's step; 0 = none."""
    note = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    text = note.read_text(encoding="utf-8") if note.exists() else ""
    return int(text or 0)


def step_seconds(run: Path) -> float:
    """What the last logged step took; 1 before there is one."""
    file = run / "metrics.jsonl"
    lines = [line["data"] for line in json_lines(file)] if file.exists() else []
    return float(lines[-1]["timing_s/step"]) if lines else 1.0


def recorded(run: Path, step: int) -> list[dict[str, Any]]:
    """What the record holds of a training step."""
    lines = (line for path in sorted((run / "record").glob("*.jsonl")) for line in json_lines(path))
    return [line for line in lines if line["step"] == step and line["training"]]


def cached(run: Path) -> dict[str, float]:
    """Verdict on the disk -> when it was stored."""
    import diskcache

    found: dict[str, float] = {}
    for shard in (run / "cache").glob("*/cache.db"):
        with diskcache.Cache(shard.parent) as cache:
            found |= {key: _stored(cache, key) for key in cache}
    return found


def _stored(cache: Any, key: str) -> float:
    ((seconds,),) = cache._sql("SELECT store_time FROM Cache WHERE key = ?", (key,)).fetchall()
    return float(seconds)


def judged_again(run: Path, held: Mapping[str, float]) -> list[str]:
    """Verdicts that were stored anew though the cache held them."""
    now = cached(run)
    again = sum(now.get(key) != seconds for key, seconds in held.items())
    return [f"{again} of {len(held)} verdicts were asked for again though the cache held them"] if again else []


def uninterrupted(recipe: Sequence[str], steps: int, name: str) -> list[list[str]]:
    """Problems of each step of a run that nobody kills: those of the trainer's own loader, without a model."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    from verl_rlkd.integration.doctor.configuration import composed

    config = composed(name, RECIPES, [*recipe, OWN_RAY])
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    trainer._init_tokenizer()
    trainer._init_dataloader()
    found: list[list[str]] = []
    while len(found) < steps:
        for batch in trainer.train_dataloader:
            found.append([str(extra["problem"]) for extra in batch["extra_info"]])
    return found[:steps]


def broken(run: Path, order: Sequence[Sequence[str]], *, group: int) -> list[str]:
    """What does not hold of a run that was killed and started again; nothing if all is well.

    Args:
        run: Its folder.
        order: Problems of each step without a kill.
        group: Responses per problem.
    """
    steps = [*range(1, len(order) + 1)]
    wrong = []
    logged = [line["step"] for line in json_lines(run / "metrics.jsonl") if "critic/score/mean" in line["data"]]
    if logged != steps:
        wrong.append(f"metrics.jsonl has the steps {logged}")
    dumped = sorted(int(path.stem) for path in (run / "rollouts").glob("*.jsonl"))
    if dumped != steps:
        wrong.append(f"rollouts/ has the steps {dumped}")
    for step, problems in zip(steps, order, strict=True):
        lines = recorded(run, step)
        if len(lines) != len({line["response_id"] for line in lines}):
            wrong.append(f"record/: step {step} has a response twice")
        if (found := Counter(line["problem"] for line in lines)) != Counter(dict.fromkeys(problems, group)):
            wrong.append(f"record/: step {step} has {dict(found)}, and {group} of each of {problems} were to be there")
    return wrong


if __name__ == "__main__":
    main()
