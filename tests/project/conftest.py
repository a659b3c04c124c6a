"""hrm-tiny's bundles, and the web page built from them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from browsing import DEMO, SOFTWARE_WEBGPU, chromium
from hrm_edge.export import Recipe, export

TINY = Path(__file__).parents[2] / "hrm_edge" / "data" / "hrm_tiny"
G2P = TINY.parent / "hrm-g2p"


@pytest.fixture(scope="session")
def packages() -> None:
    """The web page's, from npm."""
    if not (DEMO / "node_modules" / "onnxruntime-web").is_dir():
        subprocess.run(["npm", "ci", "--ignore-scripts", "--prefix", DEMO], check=True)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """hrm-tiny in int4, by the bits of its KV cache; 4h8 has 8 in the H passes. The page calls each
    by its directory's name.
    """
    out = tmp_path_factory.mktemp("tiny")
    recipes = {str(bits): Recipe(kv_bits=bits) for bits in (32, 8, 4)}
    recipes["4h8"] = Recipe(kv_bits=4, kv_h_bits=8)
    return {b: export(TINY, out / f"kv{b}" / "hrm-tiny", recipe=r).path for b, r in recipes.items()}


@pytest.fixture(scope="session")
def site(
    packages: None, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The built page with hrm-tiny, KV 8, and hrm-g2p; hrm-tiny with KV 32 beside it."""
    site = tmp_path_factory.mktemp("web") / "site"
    subprocess.run(["node", DEMO / "build.mjs", bundles["8"], G2P, site], check=True)
    shutil.copytree(bundles["32"], site / "kv32")
    return site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(*SOFTWARE_WEBGPU) as browser:
        yield browser
