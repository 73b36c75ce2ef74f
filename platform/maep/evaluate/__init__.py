"""The evaluation protocol: clean, oblivious, bpda, adaptive, transfer and black-box figures, checked and resumable.

Read in this order:
  what is asked     config, presets (attacks -> columns), baselines
  how it is done    protocol -> pool -> tasks, with what a worker has at hand (bench) and who judges (outcome)
  what comes out    rows (one an image) -> results (every figure, recomputed from them)
  what is doubted   sanity and its probes, checks, indicators, flags -> findings
  what is decided   gate; pairs (statistics of two), compare
  what is shown     table, verdict (in words), charts, pictures -> report
"""
