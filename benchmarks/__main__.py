"""Answer every question, write RESULTS.md and the table of README.md: python -m benchmarks [NAME ...]

With names only those are measured anew; the others keep the figures of their json.
"""

import importlib
import sys

from benchmarks import readme
from benchmarks.rounds import Figure, Question

NAMES = (
    "step_overhead",
    "step_parts",
    "peers",
    "in_memory",
    "workers",
    "checkpoint_stall",
    "resume_position",
    "import_time",
    "start",
    "ddp",
    "validation_memory",
    "sharded_validation",
    "sharded",
)

HEAD = """# Results

Written by `python -m benchmarks`. Every figure is a ratio or a difference to a loop by hand that does the same maths
and ends with the same weights, in rounds that take turns, in a fresh process each; medians of the rounds.
"""


def figures(question: Question, measure: bool) -> list[Figure] | Exception:
    try:
        return question.answer() if measure else question.known()
    except RuntimeError as error:  # The other questions can still be answered.
        print(error, file=sys.stderr)
        return error


def main(*names: str) -> int:
    questions = [importlib.import_module(f"benchmarks.{name}").QUESTION for name in NAMES]
    answers = [figures(question, not names or question.name in names) for question in questions]
    sections = [question.section(answer) for question, answer in zip(questions, answers, strict=True)]
    readme.RESULTS.write_text("\n".join([HEAD, *sections]))
    if any(isinstance(answer, Exception) for answer in answers):
        return 1
    readme.write()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
