"""The fixture of small stores."""

import pytest
from toys import FACTS, fill, toy_key

from siglip2_dense.store.folder import create, planned


@pytest.fixture
def toy_store(tmp_path):
    """``toy_store(images=21, views=1, ...)`` -> a whole store of shards of 16 images."""

    def build(images=21, views=1, cells=lambda index: (2, 3), scaled=False, **changes):
        store = create(planned(tmp_path / "features", toy_key(images, **changes), FACTS, images_per_shard=16))
        for shard in store.shards(views):
            fill(store, *shard, cells, scaled)
        return store

    return build
