raise RuntimeError("broken at import\non two lines")
