"""The specification's pytest plugin is loaded here, so that its options exist wherever pytest starts."""

pytest_plugins = ["spec.support.plugin", "spec.support.versions", "spec.support.gpu", "spec.report.plugin"]
