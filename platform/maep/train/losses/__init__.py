"""One file a term of the purification loss: a function from `LossInputs` and its TermConfig to a scalar tensor."""
