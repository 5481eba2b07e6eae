"""The tables of the papers on the pocket model: which models are trained, how they are measured, the page of results.

A *cell* is one measured model at one number of steps. Each cell has a record, a JSON file.
"""
