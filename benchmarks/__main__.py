"""Answer every question, write RESULTS.md and the figures of docs/comparison.md and README.md.

    python -m benchmarks [NAME ...]

With names only those are measured anew; the others keep their sections of RESULTS.md.
"""

import importlib
import sys

from benchmarks import costs
from benchmarks.rounds import Figure, Question

NAMES = (
    "step_overhead",
    "step_parts",
    "digests",
    "peers",
    "in_memory",
    "workers",
    "checkpoint_stall",
    "resume_position",
    "large_orders",
    "import_time",
    "start",
    "compiled_restart",
    "ddp",
    "validation_memory",
    "sharded_validation",
    "sharded_steps",
    "sharded",
)

HEAD = """# Results

Written by `python -m benchmarks`. Every figure is a ratio or a difference to a loop by hand that does the same maths
and ends with the same weights, in rounds that take turns, in a fresh process each; medians of the rounds.
"""


def figures(question: Question) -> list[Figure] | Exception:
    try:
        return question.answer()
    except RuntimeError as error:  # The other questions can still be answered.
        print(error, file=sys.stderr)
        return error


def main(*names: str) -> int:
    known = {part.split("\n", 1)[0]: f"## {part}" for part in costs.RESULTS.read_text().split("\n## ")[1:]}
    sections, is_complete = [], True
    for name in NAMES:
        question: Question = importlib.import_module(f"benchmarks.{name}").QUESTION
        if names and name not in names:
            if question.title in known:  # Otherwise it was never answered.
                sections.append(known[question.title].rstrip() + "\n")
            continue
        answer = figures(question)
        is_complete &= not isinstance(answer, Exception)
        sections.append(question.section(answer))
    costs.RESULTS.write_text("\n".join([HEAD, *sections]))
    if is_complete:
        costs.write()
    return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
