"""cactus-edge: certified int8 networks for devices."""

__version__ = "0.1.0"
