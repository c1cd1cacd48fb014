import runpy
from pathlib import Path

import pytest
from choices import settings_of

SCRIPT = runpy.run_path(
    str(Path(__file__).parents[2] / "scripts" / "dev" / "model_sizes.py"), run_name="model_sizes"
)


@pytest.mark.parametrize(("network", "published"), SCRIPT["PUBLISHED"].items())
def test_networks_of_papers_are_as_large_as_published(network, published):
    kind, choice = network.split("/")
    settings = settings_of(f"model/{kind}", choice) | dict(published.noise)
    # CLADE's look-ups are products here.
    size = SCRIPT["measure"](kind, settings)
    assert size.parameters == pytest.approx(published.parameters, rel=0.005)
    assert size.gmac == pytest.approx(published.gmac, rel=0.021 if choice == "clade" else 0.01)
