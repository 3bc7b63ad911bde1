"""Run by `.ci/run` with an installed wheel, from an empty directory: finds packaging errors and missing data files."""

import sys
from pathlib import Path

import zoo

REPOSITORY = Path(__file__).resolve().parents[1]


def expect(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"smoke test: {message}")


def smoke_method(name: str) -> int:
    """Looks at a method's facts, loads its default preset and runs every signature; returns the number run."""
    method = zoo.info(name)
    expect(bool(method.title and method.paper.url), f"{name} has no facts")
    if not method.preset().trained:
        return 0
    model = zoo.get(name)
    expect(model.metadata.method == name, f"{name} was loaded without metadata")
    signatures = model.signatures()
    for signature in signatures:
        outputs = model.run(signature, **model.dummy_inputs(signature))
        expect(bool(outputs), f"{name}.{signature} returned nothing")
    return len(signatures)


def smoke_dataset(name: str) -> bool:
    """Reads one element of every split of an embedded data set; returns whether it is embedded."""
    facts = zoo.datasets.info(name)
    for split in facts.splits if facts.embedded else ():
        expect(any(True for _ in zoo.datasets.load(name, split).take(1)), f"{name} has an empty split {split}")
    return facts.embedded


def main() -> None:
    expect(not Path(zoo.__file__).is_relative_to(REPOSITORY), f"zoo comes from the repository: {zoo.__file__}")
    names = zoo.list_models()
    expect(len(names) > 0, "the catalog is empty")
    expect((Path(zoo.__file__).parent / "py.typed").is_file(), "py.typed is not installed")
    expect(callable(zoo.export.export_model), "zoo.export cannot be imported")
    run = {name: smoke_method(name) for name in names}
    expect(any(run.values()), "no trained preset is shipped")
    embedded = [name for name in zoo.datasets.list_datasets() if smoke_dataset(name)]
    expect(len(embedded) > 0, "no data set is embedded")
    sys.stdout.write(f"signatures run: {run}; data sets read: {embedded}\n")


if __name__ == "__main__":
    main()
