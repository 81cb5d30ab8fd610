"""One figure per plotted analysis.

Each module has the name of its analysis, the kind of its table (KIND) and a function `draw(table)`.
"""
