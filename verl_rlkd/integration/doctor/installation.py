"""The installation: versions, the plugin here and in a Ray worker, grading in a worker process."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from verl_rlkd.checks import Check
from verl_rlkd.integration.versions import differences, installed, of_nodes

VERL = SpecifierSet(">=0.9,<0.11")
"""What setup.cfg declares."""
TESTED = {
    "verl": ("0.9.1",),
    "torch": ("2.13.0", "2.11.0"),
    "vllm": ("0.27.1", "0.24.0"),
    "transformers": ("5.9.0",),
    "ray": ("2.60.0",),
    "tensordict": ("0.10.0",),
    "TransferQueue": ("0.1.11",),
    "math-verify": ("0.9.0",),
}
"""Distribution -> versions seen to work together: those of requirements/cpu.lock, then verl[vllm]'s for GPUs."""
RAY_TIMEOUT_S = 50.0
_SAMPLE = ("<think>\nhalf of 3\n</think>\n<answer>\n1.5\n</answer>", r"\frac{3}{2}")


def versions() -> list[Check]:
    """verl's version against what we declare, and all of them against what was tested."""
    found = {name: _version(name) for name in TESTED}
    checks = []
    verl = found["verl"]
    if verl is None or Version(verl) not in VERL:
        checks.append(
            Check(
                name="verl",
                status="failed",
                detail=f"verl {verl or 'is not installed'}; verl-rlkd needs {VERL}",
                cure=f"pip install verl=={TESTED['verl'][0]}",
            )
        )
    missing = [name for name, version in found.items() if version is None and name != "verl"]
    other = [
        f"{name} {version} (tested: {' or '.join(TESTED[name])})"
        for name, version in found.items()
        if version is not None and Version(version).base_version not in TESTED[name]
    ]
    told = ", ".join(f"{name} {version}" for name, version in found.items() if version is not None)
    if missing:
        checks.append(
            Check(
                name="versions",
                status="failed",
                detail=f"not installed: {', '.join(missing)}",
                cure="install the GPU stack with pip install 'verl-rlkd[gpu]', or the CPU stack with `make venv`",
            )
        )
    elif other:
        checks.append(
            Check(
                name="versions",
                status="warning",
                detail=f"not those that were tested together: {', '.join(other)}",
                cure="if something fails, try the tested ones first",
            )
        )
    else:
        checks.append(Check(name="versions", status="ok", detail=told))
    return checks


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def entry_point() -> Check:
    """Whether verl would find the plugin at all."""
    points = [point for point in importlib.metadata.entry_points(group="verl.plugins") if point.name == "rlkd"]
    if len(points) == 1:
        distribution = points[0].dist
        by = f"{distribution.name} {distribution.version}" if distribution else "an unknown distribution"
        return Check(name="entry point", status="ok", detail=f"verl.plugins: rlkd = {points[0].value}, from {by}")
    detail = "verl.plugins has no rlkd" if not points else f"verl.plugins has {len(points)} of the name rlkd"
    cure = "install the package (pip install .); a folder on PYTHONPATH has no entry points"
    if points:
        cure = "uninstall all but one verl-rlkd"
    return Check(name="entry point", status="failed", detail=detail, cure=cure)


def plugin_policy() -> Check:
    """``VERL_USE_EXTERNAL_PLUGINS``: verl loads all plugins ("auto"), none, or those that are named."""
    name = "VERL_USE_EXTERNAL_PLUGINS"
    value = os.environ.get(name, "auto").strip().lower()
    if value == "auto" or "rlkd" in [part.strip() for part in value.split(",")]:
        return Check(name=name, status="ok", detail=value)
    return Check(
        name=name, status="failed", detail=f"{value!r} keeps our plugin out", cure="unset it, or add rlkd to it"
    )


def _look_for_plugin() -> dict[str, Any]:
    """Runs in a Ray worker: the classes that verl knows by our names."""
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
    from verl.trainer.ppo.v1 import get_trainer_cls

    from verl_rlkd.integration.run_config import MODES
    from verl_rlkd.integration.versions import installed

    found: dict[str, Any] = {"versions": installed()}
    for key, get, name in [
        ("manager", get_reward_manager_cls, "rlkd"),
        *((f"rlkd_{mode}", get_trainer_cls, f"rlkd_{mode}") for mode in MODES),
    ]:
        try:
            found[key] = get(name).__name__
        except Exception as error:  # verl raises what it likes for an unknown name
            found[key] = None
            found["error"] = " ".join(str(error).split())[:200]
    return found


def plugin_in_ray() -> Check:
    """Whether a Ray worker, as verl's are, knows the reward manager and the trainer modes."""
    import ray

    name = "plugin in a Ray worker"
    started = False
    try:
        if not ray.is_initialized():
            # A running cluster says itself how many CPUs it has.
            local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": 1, "include_dashboard": False}
            ray.init(log_to_driver=False, logging_level="ERROR", **local)
            started = True
        found = ray.get(ray.remote(_look_for_plugin).remote(), timeout=RAY_TIMEOUT_S)
        other = differences(installed(), {"a Ray worker": found.pop("versions"), **of_nodes()})
    except ray.exceptions.RayTaskError as error:
        cause = " ".join(f"{type(error.cause).__name__}: {error.cause}".split())[:300]
        detail = f"the worker cannot import verl with the plugin: {cause}"
        return Check(name=name, status="failed", detail=detail, cure="see to the lines above first")
    except Exception as error:  # Ray raises many things where a cluster is not as it was
        cause = " ".join(str(error).split())[-300:]
        return Check(
            name=name,
            status="failed",
            detail=f"{type(error).__name__}: {cause}",
            cure="`ray stop --force` ends a stale cluster; unset RAY_ADDRESS if it names one that is gone",
        )
    finally:
        if started:
            ray.shutdown()
    if other:
        return Check(name=name, status="failed", detail=other, cure="install the same versions on every node")
    wrong = found.pop("error", None)
    if wrong is None:
        manager, *modes = found
        detail = f"reward manager rlkd is {found[manager]}; trainer modes {', '.join(modes)}"
        return Check(name=name, status="ok", detail=detail)
    return Check(
        name=name,
        status="failed",
        detail=f"{', '.join(key for key, value in found.items() if value is None)} not registered: {wrong}",
        cure="install verl-rlkd in the environment of every node, and see the entry point above",
    )


def math_verify() -> Check:
    """Math-Verify in a worker process, where its own signals do not work."""
    from verl_rlkd.accuracy import AnswerGrader

    grader = AnswerGrader(timeout_s=30.0)
    try:
        right, wrong = grader.grade(*_SAMPLE), grader.grade(_SAMPLE[0], "2")
    except Exception as error:
        cause = " ".join(str(error).split())[:300]
        return Check(
            name="Math-Verify", status="failed", detail=f"{type(error).__name__}: {cause}", cure="reinstall math-verify"
        )
    finally:
        grader.close()
    if (right.value, wrong.value) == (1.0, 0.0):
        return Check(name="Math-Verify", status="ok", detail="1.5 equals \\frac{3}{2} and not 2, in a worker process")
    return Check(
        name="Math-Verify",
        status="failed",
        detail=f"1.5 against \\frac{{3}}{{2}} and 2 gave {right.value} and {wrong.value}, not 1 and 0",
        cure=f"pip install math-verify=={TESTED['math-verify'][0]}",
    )
