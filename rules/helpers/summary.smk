# Functions of rules/summary.smk.


def used_datasets():
    """Return the data sets that a run uses."""
    optional = {"monitoring", *config["segmentation"]["datasets"]}
    return ["discovery", *(name for name in config["datasets"] if name in optional)]


def settings_of_results():
    """Return the config without settings that affect only how stages run, captions, and the dense export, which no table uses."""
    how = ("batch_size", "workers", "cache", "device")
    sections = {
        name: {key: value for key, value in section.items() if key not in how}
        for name, section in config.items()
        if isinstance(section, dict) and name not in ("dense", "captions")
    }
    return {"seed": config["seed"], **sections}
