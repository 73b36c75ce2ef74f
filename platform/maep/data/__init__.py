"""Data sets by name, their splits, named image lists, loaders and augmentation."""
