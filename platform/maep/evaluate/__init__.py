"""The evaluation protocol: clean, oblivious, bpda and adaptive figures of purifiers, sanity-checked and resumable."""
