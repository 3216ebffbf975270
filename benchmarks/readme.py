"""Write README's table of costs from RESULTS.md: python -m benchmarks.readme (`python -m benchmarks` does it too)."""

from benchmarks.rounds import FOLDER

README, RESULTS = FOLDER.parent / "README.md", FOLDER / "RESULTS.md"

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


def table(results: str) -> str:
    """Return README's table, with the medians of RESULTS.md."""
    sections = {part.split("\n", 1)[0]: part for part in results.split("\n## ")[1:]}

    def median(section: str, start: str) -> str:
        (line,) = (line for line in sections[section].splitlines() if line.startswith(f"| {start}"))
        value = float(line.split(" | ")[3])
        value = value / 1000 if " instructions " in line else value
        return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2f}"

    def cell(text: str, *places: str) -> str:
        return text.format(*(median(*pair) for pair in zip(places[::2], places[1::2], strict=True)))

    return HEAD + "".join(f"| {what} | {cell(*hand)} | {cell(*ours)} |\n" for what, hand, ours in ROWS)


def write() -> None:
    """Put the table in its place in README.md."""
    text = README.read_text()
    start = text.index(HEAD)
    README.write_text(text[:start] + table(RESULTS.read_text()) + text[text.index("\n\n", start) + 1 :])


if __name__ == "__main__":
    write()
