"""The verbs: each a thin layer over functions that know no terminal."""
