"""A package, so that another one of this name, which a dependency installs, is not found first."""
