"""Curation: from a folder of videos to the shots that are worth training on.

`scan` looks at every video once and writes a manifest with a row for each shot. `review` applies thresholds to the
manifest, which takes seconds. `encode` makes a dataset from the shots that pass.
"""
