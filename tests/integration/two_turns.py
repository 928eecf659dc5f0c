"""An agent loop of two turns, each a sequence of its own: verl scores the last and gives its reward to both."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class TwoTurnAgentLoop(SingleTurnAgentLoop):
    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> list[AgentLoopOutput]:
        # The first turn is much longer than the second, so a wrong length of the second would be seen.
        first = await super().run({**sampling_params, "max_tokens": 96}, priority, **kwargs)
        again = {**kwargs, "raw_prompt": [*kwargs["raw_prompt"], {"role": "user", "content": "again"}]}
        second = await super().run({**sampling_params, "max_tokens": 64}, priority, **again)
        return [first, second]
