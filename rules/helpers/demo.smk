# Functions of rules/demo.smk.


def demo_images(dataset):
    """Return the number of images that the demo draws for a data set; for monitoring, per year."""
    return config["demo"][
        "monitoring_images_per_year" if dataset == "monitoring" else f"{dataset}_images"
    ]


def packaged_checkpoint(model):
    """Return the packed checkpoint of a demo model in the package: model is the CLIP-ResNet, vit the vision transformer.

    Its path is relative, so that moving the folder reruns nothing.
    """
    checkpoints = {"model": CHECKPOINT, "vit": VIT_CHECKPOINT}
    return local(os.path.relpath(checkpoints[model]))
