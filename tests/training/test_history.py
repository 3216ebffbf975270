"""`FitResult.history`: the rows of a run, with a folder and without."""

from pathlib import Path
from typing import Any

from helpers.models import Tiny, data, quiet

from helios_lite.metrics.rows import DIGESTS
from helios_lite.state import FitResult, is_extra


class Ending(Tiny):
    def on_training_end(self) -> None:
        self.log("last", 1.0)


def repeatable(result: FitResult) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name != "seconds" and (not is_extra(name) or "/epoch" in name)}
        for row in result.history
    ]


def test_it_has_every_row_of_the_run_once_with_files_and_without(tmp_path: Path) -> None:
    options = {"log_every_steps": 2, "valid_every_steps": 4, "valid_every_epochs": None}
    expected = quiet(max_epochs=3, **options).fit(Ending(), data())
    assert expected.run_folder is None
    for cut in (3, 6):
        quiet(max_steps=cut, root=tmp_path, **options).fit(Ending(), data())
    result = quiet(max_epochs=3, root=tmp_path, **options).fit(Ending(), data())
    quiet(root=tmp_path).test(Ending(), data())
    rows = repeatable(result)
    left_out = ("train/epoch_seconds", *DIGESTS)  # A run without a folder has no digests.
    epochs = [{k: v for k, v in row.items() if k not in left_out} for row in repeatable(expected)]
    assert [{k: v for k, v in row.items() if k not in left_out} for row in rows] == epochs
    assert [{*DIGESTS} & {*row} for row in repeatable(expected)] == [set()] * len(rows)
    assert all("weights_digest" in row for row in rows)
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 3, 4, 6, 8, 9]
    assert [row["step"] for row in rows if "valid/loss" in row] == [4, 8, 9]
    assert rows[-1]["train/last"] == 1.0
    again = quiet(max_epochs=3, root=tmp_path, **options).fit(Ending(), data())  # It has finished.
    assert repeatable(again) == rows
