"""One figure per plotted analysis.

A module is named like its analysis. It contains the kind of the table (KIND) and a function `draw(table)`.
"""
