"""Data sets as users write them."""

from torch.utils.data import Dataset


class Items(Dataset):
    """Rows one by one, as mappings."""

    def __init__(self, **parts):
        self.parts = parts

    def __len__(self):
        return len(self.parts["x"])

    def __getitem__(self, index):
        return {name: part[index] for name, part in self.parts.items()}
