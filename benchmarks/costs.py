"""Write the costs in docs/comparison.md and README.md from RESULTS.md: python -m benchmarks.costs.

`python -m benchmarks` does it too.
"""

from benchmarks.rounds import FOLDER

RESULTS = FOLDER / "RESULTS.md"
PAGE, README = FOLDER.parent / "docs/comparison.md", FOLDER.parent / "README.md"

HEAD = "| | hand-written loop | trainer |\n| --- | --- | --- |\n"

STEP = "What does a step cost over a loop written by hand?"
PARTS = "What does a step consist of?"
PEERS = "What does a step cost with other trainers?"
START = "How long does a program take to its first step?"
MEMORY = "What does a shuffled epoch of tensors in memory cost?"
WORKERS = "What does an epoch cost whose samples two loading processes prepare?"
IMPORT = "What does `import helios_lite` cost over `import torch`?"
STALL = "How long does training stand still for a checkpoint?"
SHARDED = "What do saving and resuming cost when four processes share a network?"
VALIDATION = "What does a validation of a sharded network add to the memory of a rank?"
DDP = "What do two processes cost over a DistributedDataParallel loop by hand?"

Cell = tuple[str, ...]
"""A text with a place for each figure, and the section and the start of the line of each."""

ROWS: tuple[tuple[str, Cell, Cell], ...] = (
    ("a step of the smallest network", ("{} us", STEP, "the bare"), ("{} us more", STEP, "bare: trainer")),
    (
        "the same with progress bars, `log`, rows in a file and validation",
        ("{} us, of which {} for what it shows and writes", STEP, "the loop with all", STEP, "bars, lines and rows"),
        ("{} us more", STEP, "bar, log and validation: trainer - by hand, with bars"),
    ),
    (
        "the same two, counted in instructions",
        ("{} thousand", PARTS, "the loop by hand, counted"),
        ("{} % and {} % more", PARTS, "all up to: log points", PARTS, "all up to: a validation"),
    ),
    (
        "a step beside other trainers, in one run",
        ("{} us", PEERS, "the bare"),
        (
            "{} us more; helios-ml {}, Ignite {}, Accelerate {}, torchtnt {}, Lightning {}",
            *(PEERS, "bare: helios_lite", PEERS, "bare: helios-ml", PEERS, "bare: Ignite"),
            *(PEERS, "bare: Accelerate", PEERS, "bare: torchtnt", PEERS, "bare: Lightning"),
        ),
    ),
    (
        "a typical loop over tensors in memory, beside them",
        ("{} us a step", PEERS, "the loop over a DataLoader"),
        (
            "{} of it; helios-ml {}, torchtnt {}, Accelerate {}, Ignite {}, Lightning {}",
            *(PEERS, "typical: helios_lite", PEERS, "typical: helios-ml", PEERS, "typical: torchtnt"),
            *(PEERS, "typical: Accelerate", PEERS, "typical: Ignite", PEERS, "typical: Lightning"),
        ),
    ),
    (
        "a resume at batch 5,000 of an epoch to the next batch, beside them",
        ("{} ms", PEERS, "the first batch"),
        (
            "{} ms more; Accelerate {}, helios-ml {}, Lightning {}, Ignite {}",
            *(PEERS, "resumed: helios_lite", PEERS, "resumed: Accelerate", PEERS, "resumed: helios-ml"),
            *(PEERS, "resumed: Lightning", PEERS, "resumed: Ignite"),
        ),
    ),
    (
        "a shuffled epoch of tensors in memory",
        ("stock DataLoader",),
        ("{} of its time", MEMORY, "trainer / loop over a stock"),
    ),
    (
        "an epoch that two loading processes prepare",
        ("stock DataLoader",),
        (
            "{} of its time; {} without seeding every sample",
            *(WORKERS, "trainer / by hand"),
            *(WORKERS, "trainer with seed_samples=False"),
        ),
    ),
    (
        "the time that training waits for a checkpoint of 300 MB",
        ("`torch.save`, {} ms", STALL, "torch.save |"),
        ("{} of its time", STALL, "async_save=True"),
    ),
    (
        "the time that training waits for a sharded checkpoint of 1.1 GB",
        ("`async_save`, {} ms", SHARDED, "stall by hand"),
        ("{} of its time", SHARDED, "stall of a save"),
    ),
    (
        "what a resume of it adds to a rank's memory, in parts of the whole",
        ("{}, with four ranks", SHARDED, "a resume by hand"),
        ("{}", SHARDED, "growth in a resume"),
    ),
    (
        "what a validation of a sharded network adds to it",
        ("all blocks at once: {}", VALIDATION, "by hand, gathered at once"),
        ("{}", VALIDATION, "trainer |"),
    ),
    (
        "a step of two processes, with 0.3 M and with 8 M parameters",
        (
            "DistributedDataParallel, {} and {} us",
            *(DDP, "0.3 M parameters: the loop by hand"),
            *(DDP, "8 M parameters: the loop by hand"),
        ),
        (
            "{} and {} of its time",
            *(DDP, "0.3 M parameters: trainer / by hand"),
            *(DDP, "8 M parameters: trainer / by hand"),
        ),
    ),
    (
        "from the start of a program to its first step",
        ("{} s; with torchrun and two processes {} s", START, "one process, by hand", START, "two processes, by hand"),
        ("{} and {} of it", START, "one process: trainer / by hand", START, "two processes: trainer"),
    ),
    (
        "import",
        ("torch, {} ms", IMPORT, "import torch"),
        ("{} ms more", IMPORT, "import helios_lite"),
    ),
)


IN_README = "| a step beyond a hand-written loop |"
TRAINERS = ("helios_lite", "Lightning", None, "Accelerate", "Ignite")
"""In the order of README's columns; None is one that is not measured."""


def sections(results: str) -> dict[str, str]:
    """Return the sections of RESULTS.md by their titles."""
    return {part.split("\n", 1)[0]: part for part in results.split("\n## ")[1:]}


def median(section: str, start: str) -> str:
    """Return the median in the only line of a section that starts so."""
    (line,) = (line for line in section.splitlines() if line.startswith(f"| {start}"))
    value = float(line.split(" | ")[3])
    value = value / 1000 if " instructions " in line else value
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2f}"


def table(results: str) -> str:
    """Return the table of docs/comparison.md, with the medians of RESULTS.md."""
    known = sections(results)

    def cell(text: str, *places: str) -> str:
        pairs = zip(places[::2], places[1::2], strict=True)
        return text.format(*(median(known[section], start) for section, start in pairs))

    return HEAD + "".join(f"| {what} | {cell(*hand)} | {cell(*ours)} |\n" for what, hand, ours in ROWS)


def row(results: str) -> str:
    """Return the row of README's table that has a step of each trainer."""
    peers = sections(results)[PEERS]
    cells = ("not measured" if name is None else f"{median(peers, f'bare: {name}')} us" for name in TRAINERS)
    return " ".join([IN_README, *(f"{cell} |" for cell in cells)])


def write() -> None:
    """Put the table and the row in their places."""
    results, page, readme = (path.read_text() for path in (RESULTS, PAGE, README))
    start = page.index(HEAD)
    end = page.find("\n\n", start)
    PAGE.write_text(page[:start] + table(results) + ("" if end < 0 else page[end + 1 :]))
    start = readme.index(IN_README)
    README.write_text(readme[:start] + row(results) + readme[readme.index("\n", start) :])


if __name__ == "__main__":
    write()
