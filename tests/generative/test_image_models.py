"""The comparison of models of images: what it says follows from its runs."""

import json
import math

import numpy as np
import pytest

from zoo.experiments import image_models
from zoo.experiments.report import Ledger


def made_up(ledger, bits, distances, passes=True):
    """Fills a ledger with runs of chosen numbers, all of the same samples."""
    shown = np.zeros((image_models.NUM_SHOWN, *image_models.SHAPE)).tolist()
    measures = {"frechet_distance": 0.1, "modes": 10, "precision": 1.0, "recall": 1.0}
    runs = ledger.content["runs"]
    for name in image_models.DATASETS:
        runs[f"{image_models.IMAGES}, {name}"] = {"0": measures}
        for title in image_models.MODELS.values():
            found = {"nats": 1.0, "bits_per_dimension": bits[title]} if title in bits else {}
            runs[f"{title}, {name}, likelihood"] = {"0": found}
            own = {**measures, "frechet_distance": distances[title], "shown": shown}
            runs[f"{title}, {name}"] = {"0": own, "1": own}
    paper = {"nats": 1900.0, "bits_per_dimension": 4.5, "epochs": 10, "shown": shown}
    runs[image_models.PAPER] = {"0": paper}
    for arm in image_models._quantized_arms():
        runs[arm] = {"0": {"nats": 1.0, "size": 1000, "passes": passes, "shown": shown}}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "runs.json", {})


DISTANCES = {"NICE": 3.0, "Real NVP": 2.0, "Glow": 2.5, "VAE": 1.0, "DCGAN": 0.5}


def test_verdict_of_the_order_of_the_papers(ledger):
    made_up(ledger, {"NICE": 2.0, "Real NVP": 1.5, "Glow": 1.6}, DISTANCES)
    verdict = image_models._verdict(ledger)

    assert verdict.count("the order of the papers shows") == 2
    assert "for VAE and DCGAN" in verdict
    assert f"{image_models.PAPER_NATS - 1900:.1f} nats short" in verdict


def test_verdict_of_another_order(ledger):
    made_up(ledger, {"NICE": 1.55, "Real NVP": 1.5, "Glow": 1.6}, {**DISTANCES, "VAE": 2.2, "DCGAN": 9.0}, False)
    verdict = image_models._verdict(ledger)

    assert verdict.count("the order of the papers does not show") == 2
    assert "for none" in verdict
    assert verdict.endswith("when quantised: none.")


def test_tables_and_figures_hold_every_run(ledger):
    made_up(ledger, {"NICE": 2.0, "Real NVP": 1.5, "Glow": 1.6}, DISTANCES)
    ledger.content["runs"]["Glow, int8"]["0"] = {"refused": "no numbers"}
    tables = image_models._tables(ledger)

    assert json.dumps(tables, allow_nan=False)
    assert len(tables["samples"]) == 2 * (1 + len(image_models.MODELS))
    assert len(tables["quantized"]) == len(image_models.FLOWS) * len(image_models.PRECISIONS)
    assert tables["quantized"]["Glow, int8"] == {"refused": "no numbers"}
    for figure in (image_models._sample_figure(ledger), image_models._quantized_figure(ledger)):
        assert len(figure.axes) in (len(image_models.DATASETS), len(image_models.FLOWS))


def test_bound_of_a_shipped_model_is_that_of_its_metadata():
    import zoo

    found = image_models.likelihood("vae", "mnist", "mnist_sample")

    assert found["nats"] == pytest.approx(zoo.get("vae", "mnist").metadata.metrics["test_nats_500"], abs=0.01)
    # Black and white: a density of other images than the flows'
    assert "bits_per_dimension" not in found


def test_samples_of_a_flow_come_in_the_unit_range():
    import zoo

    model = zoo.get("real_nvp", "mnist")
    images = np.stack([model.value_range[0] * np.ones(28 * 28), model.value_range[1] * np.ones(28 * 28)])
    scaled = image_models._unit(model, images.reshape(2, 28, 28, 1))

    assert scaled.shape == (2, 28, 28)
    assert math.isclose(scaled[0].max(), 0.0) and math.isclose(scaled[1].min(), 1.0)
