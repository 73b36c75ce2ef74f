"""Data sets by name, their splits, named image lists and augmentation."""
