# Functions of rules/demo.smk.


def demo_images(dataset):
    """Return the number of images that the demo draws for a data set; for monitoring, per year."""
    return config["demo"][
        "monitoring_images_per_year" if dataset == "monitoring" else f"{dataset}_images"
    ]
