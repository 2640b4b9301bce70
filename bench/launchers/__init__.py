"""How the worker's processes are started: one file per launcher."""

from .base import Command, Launcher, launchers, module_argv, worker_argv

__all__ = ["Command", "Launcher", "launchers", "module_argv", "worker_argv"]
