# Functions of rules/plots.smk.


def caption(name):
    """Return the caption of an analysis, which its plot shows."""
    return (Path(workflow.basedir) / "rules" / "captions" / f"{name}.rst").read_text()
