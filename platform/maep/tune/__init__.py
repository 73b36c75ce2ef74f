"""The search: which purifier is best for a budget, found by trials that train and measure one setting each."""
