"""Where a cell runs: one file per kind of device."""

from .base import Device, Mark, devices

__all__ = ["Device", "Mark", "devices"]
