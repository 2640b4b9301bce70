"""engine=compiled on every family of transformers that has a static cache, on a real accelerator.

`pytest -m slow -n 16 tests/hardware/test_every_family.py` compiles more than 500 steps: bring cores.
"""

from __future__ import annotations

import pytest

from bench.devices import devices
from bench.engines.compiled import Compiled
from tests.hardware.test_accelerator import needs
from tests.test_every_family import FAMILIES, WAYS, compare


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # each family has its own
@pytest.mark.parametrize("kind", [needs("cuda"), needs("xpu")])
@pytest.mark.parametrize(("compiled", "ways"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_generate(kind: str, compiled: bool, ways: tuple[tuple[int, int], ...], family: str):
    device = devices.get(kind)()
    compare(family, kind, ways, Compiled()._options(device) if compiled else None, device)
