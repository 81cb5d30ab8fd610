# Functions of rules/analyses.smk.


def of_analyses(pattern):
    """Return a path of the data set that the analyses use."""
    return pattern.format(dataset=config["analyses"]["dataset"])
