# Functions of rules/directions.smk.


def top_options():
    """Return the option for the number of top images: the number, or else the share."""
    section = config["directions"]
    if section["top_images"] is not None:
        return f"--top-images {section['top_images']}"
    return f"--top-share {section['top_share']}"


def coefficients_for(unit):
    """Return the stores to which the directions of a unit are fitted. Pairs need only their moments."""
    return [] if UNITS[unit].rank_one else shards("discovery", "contributions")


def contributions_options(paths):
    """Return the option for contributions, if there are any."""
    return ["--contributions", *paths] if paths else []


def component_options(unit):
    """Return the option for the number of directions of a unit that is not rank one."""
    components = config["directions"]["components"]
    return "" if UNITS[unit].rank_one else f"--components {components}"


def correlations_of(unit):
    """Return the table of a unit's texts by correlation. Only pairs have one."""
    correlated = "results/artifacts/assignments/correlated.parquet"
    return [correlated] if UNITS[unit].rank_one else []


def correlated_options(paths):
    """Return the option for texts by correlation, if there are any."""
    return ["--correlated", *paths] if paths else []
