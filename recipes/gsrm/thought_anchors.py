"""Thought Anchors' labelled traces as rows for `verl-rlkd gsrm eval`.

    python recipes/gsrm/thought_anchors.py <folder of the data> labelled.jsonl

The data is that of github.com/interp-reasoning/thought-anchors.com (MIT): folders with base_solution.json and
chunks_labeled.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    source, out = map(Path, sys.argv[1:3])
    labelled = sorted(source.rglob("chunks_labeled.json"))
    if not labelled:
        sys.exit(f"{source} has no chunks_labeled.json below it; give the folder of the traces")
    with out.open("w", encoding="utf-8") as file:
        for path in labelled:
            solution = json.loads(path.with_name("base_solution.json").read_text(encoding="utf-8"))
            problem = json.loads(path.with_name("problem.json").read_text(encoding="utf-8"))
            sentences = [
                {
                    "text": chunk["chunk"],
                    "tags": chunk["function_tags"],
                    "depends_on": [int(one) for one in chunk["depends_on"]],
                    "summary": chunk["summary"],
                }
                for chunk in json.loads(path.read_text(encoding="utf-8"))
            ]
            row = {
                "problem": problem["problem"],
                "trace": solution["solution"],
                "domain": "math",
                "sentences": sentences,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{out}: {len(labelled)} traces")


if __name__ == "__main__":
    main()
