"""RLKD's reward in your own script: one response against one teacher trace, through a GSRM behind an address.

    python examples/score_with_gsrm.py http://host:8000/v1 my-gsrm

Any OpenAI-compatible server does; `python tests/stub_server.py` starts one that needs no model.
"""

from __future__ import annotations

import sys

from verl_rlkd import RLKDReward

PROBLEM = "A dozen eggs costs $3. What do 30 eggs cost?"
TRACE = "One egg costs 3/12 = $0.25. So 30 eggs cost 30 * 0.25 = $7.50.\n</think>\n$7.50"
RESPONSE = "<think>\n30 eggs are 2.5 dozen, and 2.5 * 3 = 7.5.\n</think>\n<answer>\n$7.50\n</answer>"


def main() -> None:
    base_url, model = sys.argv[1:]
    with RLKDReward(base_url, model) as reward:
        scored = reward.score(RESPONSE, problem=PROBLEM, teacher=TRACE, ground_truth="7.5")
    print(f"score {scored.score:.3f}, of which structure {scored.components.structure:.3f}")
    for step in scored.student.steps if scored.student else ():
        print(f"student: {step.meta_reasoning}")


if __name__ == "__main__":
    main()
