"""Results of experiments: a ledger of finished runs, their summary, and the files under `docs/results`."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Progress = Callable[[str], None]


class Ledger:
    """Finished runs of an experiment in a JSON file, so that an interrupted experiment goes on where it stopped.

    Args:
        path: path of the file; created on the first run.
        settings: JSON-able dict. Runs made with other settings are refused.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.content: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "runs": {}}
        if self.path.exists():
            found = json.loads(self.path.read_text())
            if found["settings"] != self.content["settings"]:
                raise ValueError(
                    f"{self.path} holds runs with other settings; remove it or write elsewhere. "
                    f"Received: {self.content['settings']}, found: {found['settings']}"
                )
            self.content = found

    def run(self, arm: str, seed: int, function: Callable[[], dict[str, Any]], progress: Progress) -> dict[str, Any]:
        """Returns the recorded result of a run, or runs it and records it."""
        runs = self.content["runs"].setdefault(arm, {})
        if str(seed) not in runs:
            progress(f"{arm}, seed {seed}")
            runs[str(seed)] = function()
            with atomic_file(self.path) as file:
                file.write_text(json.dumps(self.content, indent=1) + "\n")
        return runs[str(seed)]

    def values(self, arm: str, key: str) -> list[Any]:
        """Returns one number of every seed of an arm."""
        return [run[key] for run in self.content["runs"][arm].values()]

    def summary(self, key: str) -> dict[str, dict[str, float]]:
        """Returns mean and standard deviation of a number by arm."""
        return {arm: mean_and_std(self.values(arm, key)) for arm in self.content["runs"]}


def write_results(
    method: str,
    directory: str | Path,
    *,
    claim: str,
    verdict: str,
    command: str,
    tables: Mapping[str, Any],
    figure: Figure,
    settings: Mapping[str, Any],
    more_figures: Mapping[str, Figure] | None = None,
) -> None:
    """Writes `<method>.json`, `<method>.png` and, for each of `more_figures`, `<method>_<name>.png`.

    Args:
        method: str. Catalog name.
        directory: path of `docs/results`.
        claim: str. What the paper says.
        verdict: str. What these runs say of it.
        command: str. The command line that repeats the experiment.
        tables: mapping from title to numbers.
        figure: matplotlib figure.
        settings: mapping. Sizes, data set, seeds.
        more_figures: mapping from names to matplotlib figures, or None.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    packages = ("tensorflow", "keras", "tensorflow-probability", "numpy")
    content = {
        "method": method,
        "claim": claim,
        "verdict": verdict,
        "command": command,
        "settings": dict(settings),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        **tables,
    }
    with atomic_file(directory / f"{method}.json") as file:
        file.write_text(json.dumps(content, indent=1) + "\n")
    named = {method: figure, **{f"{method}_{name}": other for name, other in (more_figures or {}).items()}}
    for name, drawn in named.items():
        with atomic_file(directory / f"{name}.png") as file:
            drawn.savefig(file, format="png", dpi=120, bbox_inches="tight")


def difference(ledger: Ledger, better: str, worse: str, key: str) -> dict[str, float]:
    """Compares two arms seed by seed.

    Returns:
        Mean and standard deviation over seeds of `worse - better`; positive where the claim holds.
    """
    pairs = [b - a for a, b in zip(ledger.values(better, key), ledger.values(worse, key), strict=True)]
    return {"mean": statistics.fmean(pairs), "std": statistics.stdev(pairs) if len(pairs) > 1 else 0.0}


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean, the standard deviation (0 for a single value) and the number of values, `seeds`."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "seeds": len(values)}


def shows(parts: Mapping[str, bool]) -> str:
    """Returns "Shows: ..., .... Does not show: ..." of parts of a claim, each with whether it holds."""
    named = {
        word: [part for part in parts if parts[part] is held]
        for word, held in (("Shows", True), ("Does not show", False))
    }
    return " ".join(f"{word}: {', '.join(found)}." for word, found in named.items() if found)


def spread(values: Sequence[float]) -> str:
    """Returns `mean +- standard deviation` with three decimals."""
    found = mean_and_std(values)
    return f"{found['mean']:.3f} ± {found['std']:.3f}"
