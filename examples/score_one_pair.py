"""Score one student's structure against its teacher's, by hand: no model, no network, a second or two.

The steps are compared as normalised text; in training a judge model compares their meaning.
"""

from __future__ import annotations

import asyncio

from verl_rlkd import (
    RewardWeights,
    accuracy_reward,
    combine_rewards,
    format_reward,
    parse_structure,
    score_structure,
    tag_reward,
)
from verl_rlkd.matching import match_steps, same_text

TEACHER = """
[Meta-reasoning 1]: The price is given per dozen, so bring everything to single eggs first.
[Sub-problem 1]: What does one egg cost?
[Answer 1]: 0.25
[Meta-reasoning 2]: With a price per egg, the order is a multiplication.
[Sub-problem 2]: What do 30 eggs cost?
[Answer 2]: 7.50
[Meta-reasoning 3]: A discount applies to the total only.
[Sub-problem 3]: What is left after 10 % off?
[Answer 3]: 6.75
[Meta-reasoning 4]: Check the result by going backwards.
[Sub-problem 4]: What is 6.75 / 0.9 / 30?
[Answer 4]: 0.25
"""

# Tidy where it matters, sloppy in spelling: the parser does not mind.
STUDENT = """
**[Meta-reasoning 1]:** the price is given per dozen, so bring everything to single eggs first
**[Sub-problem 1]:** What does one egg cost?
**[Answer 1]:** 0.25
**[Meta-reasoning 2]:** With a price per egg, the order is a multiplication.
**[Sub-problem 2]:** What do 30 eggs cost?
**[Answer 2]:** 7.25
**[Meta-reasoning 3]:** Nothing is left to do, so answer.
**[Sub-problem 3]:** What is left after 10 % off?
**[Answer 3]:** 6.75
"""

RESPONSE = "<think>\n(the student's reasoning, which the GSRM structured)\n</think>\n<answer>\n\\boxed{6.75}\n</answer>"
GOLD = "6.75"


async def same(_field: str, student: str, teacher: str) -> bool:
    return same_text(student, teacher)


def main() -> None:
    """Print the reward, step by step."""
    teacher, student = parse_structure(TEACHER), parse_structure(STUDENT)
    verdicts = asyncio.run(match_steps(student, teacher, same))
    score = score_structure(verdicts, num_teacher_steps=len(teacher.steps))

    signs = {True: "yes", False: "no", None: "-"}
    print("step  meta-reasoning  sub-problem  answer  score")
    for number in range(1, len(teacher.steps) + 1):
        if number <= len(verdicts):
            verdict, value = verdicts[number - 1], score.per_step[number - 1]
            parts = [signs[verdict.meta_reasoning], signs[verdict.sub_problem], signs[verdict.answer]]
        else:
            parts, value = ["-", "-", "-"], 0.0
        print(f"{number:>4}  {parts[0]:>14}  {parts[1]:>11}  {parts[2]:>6}  {value:>5.2f}")
    print(f"exit at step {score.exit_step}; structure = {sum(score.per_step)} / {len(teacher.steps)} = {score.value}\n")

    weights = RewardWeights()
    breakdown = combine_rewards(
        {
            "accuracy": accuracy_reward(RESPONSE, GOLD),
            "structure": score.value,
            "format": format_reward(RESPONSE),
            "tags": tag_reward(RESPONSE),
        },
        weights,
    )
    print("component  value  weight")
    for name, value in breakdown.components.items():
        print(f"{name:<9}  {value:>5.3f}  {getattr(weights, name):>6.0f}")
    print(f"reward     {breakdown.score:>5.3f}")


# The guard matters: grading starts a worker process, which imports this file.
if __name__ == "__main__":
    main()
