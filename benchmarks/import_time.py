"""What `import helios_lite` costs over `import torch`: python -m benchmarks.import_time"""

import json
import subprocess
import sys

from benchmarks.rounds import Figure, Question, Result, Runs, each

HEAVY = ("rich", "tqdm", "numpy", "pandas", "tensorboard", "torch.utils.tensorboard", "torch.distributed.run")

CODE = f"""
import json, sys, time
start = time.perf_counter()
import torch
between = time.perf_counter()
before = set(sys.modules)
import helios_lite
end = time.perf_counter()
new = set(sys.modules) - before
heavy = len(new & set({HEAVY}))
print(json.dumps(dict(torch=between - start, ours=end - between, modules=len(new), heavy=heavy)))
"""


def measure() -> Result:
    result: Result = json.loads(subprocess.check_output([sys.executable, "-c", CODE]))
    return result


def figures(runs: Runs) -> list[Figure]:
    return [
        Figure("import helios_lite after import torch", "ms", each(runs, "import", "ours", 1e3), target=100),
        Figure(f"of {', '.join(HEAVY)} it loads", "modules", each(runs, "import", "heavy"), target=0),
        Figure("all that it loads", "modules", each(runs, "import", "modules")),
        Figure("import torch", "ms", each(runs, "import", "torch", 1e3)),
    ]


QUESTION = Question(
    name="import_time",
    title="What does `import helios_lite` cost over `import torch`?",
    timed="""
    `import torch`, then `import helios_lite`, in a new interpreter that has imported nothing else: what the second
    takes is the difference that a program sees, without the noise of the first.
    """,
    remains="""
    The package's own modules, whose bytecode is there as after an installation, and what they need of the standard
    library and of torch.utils.data; rich and tqdm are imported when something is shown.
    """,
    rounds=5,
    variants={"import": measure},
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
