"""verl's way in: the ``verl.plugins`` entry point.

``import verl`` loads this module in every process (driver, Ray workers, rollout servers, vLLM engines) while
verl itself is half imported. So it imports nothing heavy; each registration waits in a post-import hook until
verl has loaded the module concerned:

    verl.utils.config                            -> the run's check, before Ray starts
    verl.plugin.platform                         -> CPU platform     (only where VERL_PLATFORM=cpu)
    verl.experimental.reward_loop.reward_manager -> reward manager "rlkd"
    verl.trainer.ppo.v1                          -> trainer modes "rlkd_sync", "rlkd_..._async"

verl logs an entry point's exception at DEBUG level and goes on without the plugin, so this module says by
itself, on stderr, when it could not load.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any


def _register_platform(_module: object) -> None:
    from verl_rlkd.integration.cpu import activate

    activate()


def _register_reward_manager(_module: object) -> None:
    import verl_rlkd.integration.reward_manager  # noqa: F401  (registers itself)


def _register_trainer_modes(_module: object) -> None:
    import verl_rlkd.integration.trainer  # noqa: F401  (registers itself)


def _check_before_ray_starts(module: object) -> None:
    import wrapt

    wrapt.wrap_function_wrapper(module, "validate_config", _validate_config)


def _validate_config(wrapped: Any, _instance: object, args: Any, kwargs: Any) -> Any:
    from verl_rlkd.integration.run_config import check_run, uses_rlkd
    from verl_rlkd.integration.versions import write_versions

    config = args[0] if args else kwargs["config"]
    if uses_rlkd(config):
        check_run(config)
        write_versions(config)
    return wrapped(*args, **kwargs)


HOOKS = {
    "verl.utils.config": _check_before_ray_starts,
    "verl.plugin.platform": _register_platform,
    "verl.experimental.reward_loop.reward_manager": _register_reward_manager,
    "verl.trainer.ppo.v1": _register_trainer_modes,
}
"""verl module -> what to do once it is loaded."""


def load() -> bool:
    """True once every hook of ``HOOKS`` is in place; says so on stderr and raises if one is not."""
    try:
        import wrapt

        for module, hook in HOOKS.items():
            wrapt.register_post_import_hook(hook, module)
    except BaseException:
        sys.stderr.write("verl-rlkd: the plugin did not load; reward manager and trainer modes 'rlkd' are missing:\n")
        traceback.print_exc()
        raise
    return True


LOADED = load()
