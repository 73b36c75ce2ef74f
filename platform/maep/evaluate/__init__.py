"""Evaluation: clean, oblivious, BPDA, adaptive, transfer and black-box figures, checked and resumable.

measure     accuracy of one defended model under one attack; validation and search call it too
protocol/   presets (which attacks make which columns), tasks, workers, and the evaluation as a whole
trust/      the sanity battery, indicators of attack failure, checks across rows, flags
results/    rows per image, figures computed from them, comparison and gate
report/     tables, charts and the page
"""
