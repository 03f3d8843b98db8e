"""Data sets as users write them."""

import warnings

import pytest
from torch.utils.data import Dataset


class Items(Dataset):
    """Rows one by one, as mappings."""

    def __init__(self, **parts):
        self.parts = parts

    def __len__(self):
        return len(self.parts["x"])

    def __getitem__(self, index):
        return {name: part[index] for name, part in self.parts.items()}


def save_h5ad(path, x, *, names=None, raw=False, **more):
    """Writes an AnnData file, with its values as the raw part too where that is asked for."""
    anndata = pytest.importorskip("anndata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observations = anndata.AnnData(x, **more)
        observations.obs_names = names or [f"cell {i}" for i in range(observations.n_obs)]
        if raw:
            observations.raw = observations.copy()
        if hasattr(anndata.settings, "allow_write_nullable_strings"):  # by which pandas 3 holds names
            anndata.settings.allow_write_nullable_strings = True
        observations.write_h5ad(path)
    return str(path)
