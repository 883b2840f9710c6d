"""The specification's pytest plugin is loaded here, so that its options exist wherever pytest starts."""

pytest_plugins = [
    "spec.support.versions",
    "spec.support.without_torchvision",
    "spec.support.plugin",
    "spec.support.gpu",
    "spec.report.plugin",
]
