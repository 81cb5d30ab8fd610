# Functions of rules/analyses.smk.


def of_analyses(pattern):
    """Return the path of a pattern for the data set that the analyses use."""
    return pattern.format(dataset=config["analyses"]["dataset"])
