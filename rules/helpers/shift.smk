# Functions of rules/shift.smk.


def reference_options():
    """Return the option for the reference group, if the config names one."""
    return settings(reference=config["shift"]["reference"])


def comparison_options():
    """Return the options for the comparison of groups."""
    section = config["shift"]
    return [
        *reference_options(),
        "--test",
        section["test"],
        "--small-group",
        section["small_group"],
    ]
