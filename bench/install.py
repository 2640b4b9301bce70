"""`bench stack`: make the environments of configs/stack, and say which there are.

An environment is complete when its marker exists, which is written last. An interrupted creation goes on where it was:
the installer skips what is there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.text import Text

from .console import Console
from .errors import ConfigError, did_you_mean
from .hardware import hardware
from .stacks import CURRENT, MARKER, Stack, check, clean_environment, executable, stacks, stacks_folder

USAGE = """\
usage: bench stack list
       bench stack create NAME... [--force] [--device cpu|xpu|cuda]

An environment of its own for libraries whose pins exclude others; `bench run stack=NAME` measures in it, and
`bench run -m stack=current,NAME` side by side. `list` says what there is and whether it works. `create` makes it, once;
interrupted, the same command goes on. --force starts anew, --device chooses the builds (by default what is here).

  BENCH_STACKS=DIR         where environments are kept (default: stacks in bench's cache folder)
  BENCH_STACK_PYTHON=PATH  make it with this interpreter
  BENCH_STACK_INDEX=URL    a further package index, such as Intel's for XPU builds

Where pip has been told where to find packages (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX), pip installs; elsewhere
uv, which knows the index of each build of torch.
"""

Say = Callable[[str], None]


def main(arguments: list[str]) -> int:
    """The command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    command, *rest = arguments
    if any(word in ("-h", "--help") for word in rest):
        sys.stdout.write(USAGE)
        return 0
    if command == "list":
        if rest:
            raise ConfigError(f"bench stack list has no argument {rest[0]}: see bench stack --help")
        sys.stdout.write("\n".join(lines()) + "\n")
        return 0
    if command != "create":
        raise ConfigError(did_you_mean("command of bench stack", command, ("create", "list")))
    force, device, names = _arguments(rest)
    for stack in names:
        create(stack, device or _kind(stack), force)
    return 0


def _arguments(words: Sequence[str]) -> tuple[bool, str | None, list[Stack]]:
    known = stacks()
    force, device = False, None
    names = []
    rest = iter(words)
    for word in rest:
        if word == "--force":
            force = True
        elif word == "--device" or word.startswith("--device="):
            device = word.partition("=")[2] or next(rest, "")
        elif word.startswith("-"):
            raise ConfigError(f"bench stack create has no option {word}: see bench stack --help")
        elif word == CURRENT:
            raise ConfigError("stack=current is the interpreter that runs bench: there is nothing to create")
        elif word not in known:
            raise ConfigError(did_you_mean("stack", word, known))
        else:
            names.append(known[word])
    if not names:
        raise ConfigError(f"bench stack create needs a name: {', '.join(name for name in known if name != CURRENT)}")
    for stack in names:
        if device is not None and device not in stack.torch:
            raise ConfigError(f"stack={stack.name} has no builds for {device}: {', '.join(stack.torch)}")
    return force, device, names


def _kind(stack: Stack) -> str:
    """The builds for what is here, or those for the processor, which every stack has."""
    best = hardware().best()
    return best if best in stack.torch else "cpu"


def lines() -> Iterator[str]:
    """One line per stack: whether it is there and works, and its versions."""
    for stack in stacks().values():
        works, text = health(stack)
        yield f"  {stack.name:12} {'yes' if works else 'no':3}  {text}"


def health(stack: Stack) -> tuple[bool, str]:
    """Whether a stack can be used now, and its versions, or why not and what to do."""
    if stack.name == CURRENT:
        return True, "the interpreter that runs bench"
    made = stack.made()
    try:
        python = stack.interpreter()
        assert python is not None
        versions = check(stack, python, made.get("kind", "cpu"))
    except ConfigError as error:
        return False, str(error).removeprefix(f"stack={stack.name} ")
    text = " ".join(f"{name} {version}" for name, version in versions.items())
    if made and stack.recipe(made["kind"]) != made["recipe"]:
        text += f"; its pins have changed since: bench stack create {stack.name}"
    return True, text


def create(stack: Stack, kind: str, force: bool = False) -> None:
    """Make a stack's environment for a kind of device. Raises ConfigError in one line that names the log."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _only_one(stack):
        if force and stack.folder.exists():
            console.print(Text(f"{stack.name}: removing {stack.folder}"))
            shutil.rmtree(stack.folder)
        made = stack.made()
        if stack.state() == "ready" and made["recipe"] == stack.recipe(kind):
            console.print(Text(f"{stack.name}: is there already, in {stack.folder}; --force makes it anew"))
            return
        (stack.folder / MARKER).unlink(missing_ok=True)
        with console.status("", spinner="dots") as status:
            step = _Steps(stack, console, lambda text: status.update(Text(text))).run
            environment, install = _environment(stack)
            if not (stack.folder / "bin" / "pip").exists():  # the last thing that is put into a new one
                step("environment", environment)
            python = str(executable(stack.folder))
            for name, argv in install(kind):
                step(name, argv)
            status.update(Text("importing"))
            versions = check(stack, python, kind)
        temporary = stack.folder / f".{MARKER}"
        temporary.write_text(json.dumps({"recipe": stack.recipe(kind), "kind": kind, "versions": versions}, indent=1))
        temporary.replace(stack.folder / MARKER)
        console.print(Text(f"{stack.name}: ready, {' '.join(f'{k} {v}' for k, v in versions.items())}"))


@contextmanager
def _only_one(stack: Stack) -> Iterator[None]:
    try:
        stacks_folder().mkdir(parents=True, exist_ok=True)
        handle = os.open(stacks_folder() / f".{stack.name}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise ConfigError(
            f"cannot write {stacks_folder()}: {error.strerror}; BENCH_STACKS=DIR chooses another"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"another bench stack create {stack.name} is running: wait for it to end") from None
    finally:
        os.close(handle)


class _Steps:
    """Runs installers, their output in a log, their last news on the terminal."""

    def __init__(self, stack: Stack, console: Console, show: Say) -> None:
        self.stack = stack
        self.console = console
        self.show = show
        self.log = stack.folder / "install.log"

    def run(self, name: str, argv: Sequence[str]) -> None:
        """One step. Raises ConfigError with the installer's own last error."""
        self.console.print(Text(f"{self.stack.name}: {name}"))
        self.stack.folder.mkdir(parents=True, exist_ok=True)
        last = ""
        with self.log.open("a") as log:
            log.write(f"\n== {name}\n")
            log.flush()
            try:
                process = subprocess.Popen(
                    argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                    env=clean_environment(), stdin=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                raise ConfigError(f"stack={self.stack.name}: cannot start {argv[0]}: {error.strerror}") from error
            assert process.stdout is not None
            with process.stdout:
                try:
                    for line in map(str.strip, process.stdout):
                        log.write(line + "\n")
                        if line.lower().startswith(("error", "fatal", "×")) or "No space left" in line:
                            last = line
                        if re.match(r"(Collecting|Downloading|Building|Installing|Prepared|Resolved|\+)", line):
                            self.show(f"{name}: {line[:100]}")
                except BaseException:  # Ctrl-C
                    process.terminate()
                    raise
                finally:
                    process.wait()
        if process.returncode:
            why = last or f"exit status {process.returncode}"
            raise ConfigError(
                f"stack={self.stack.name} could not be made, {name}: {why} (log: {self.log}); "
                f"the same command goes on from here"
            )


Install = Callable[[str], Iterator[tuple[str, list[str]]]]


def _environment(stack: Stack) -> tuple[list[str], Install]:
    """The command that makes the virtual environment, and those that fill it, by kind of device."""
    folder = str(stack.folder)
    python = str(executable(stack.folder))
    base = _base(stack)
    told = any(os.environ.get(name) for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"))
    uv = shutil.which("uv")
    extra = os.environ.get("BENCH_STACK_INDEX")
    index = ["--extra-index-url", extra] if extra else []
    if base:
        environment = [base, "-m", "venv", folder]
    elif uv:  # it brings the interpreter
        environment = [uv, "venv", "--seed", "--allow-existing", "--python", stack.interpreters[0], folder]
    else:
        wanted = " or ".join(stack.interpreters)
        raise ConfigError(f"stack={stack.name} needs Python {wanted}: install one, or uv, or set BENCH_STACK_PYTHON")

    def install(kind: str) -> Iterator[tuple[str, list[str]]]:
        first, then = list(stack.torch[kind]), list(stack.packages[kind])
        if told:
            command = [python, "-m", "pip", "install", "--progress-bar=off", *index]
            yield " ".join(first), [*command, *first]
        else:
            if not uv:
                yield "uv", [python, "-m", "pip", "install", "-q", "uv"]
            command = [*([uv] if uv else [python, "-m", "uv"]), "pip", "install", "--python", python, *index]
            yield " ".join(first), [*command, f"--torch-backend={kind if kind != 'cuda' else 'auto'}", *first]
        yield f"{len(then)} packages and what they need", [*command, *first, *then]

    return environment, install


def _base(stack: Stack) -> str | None:
    """An interpreter of a version that the pins have wheels for: the user's, this one, or one of that name."""
    chosen = os.environ.get("BENCH_STACK_PYTHON")
    named = [found for version in stack.interpreters if (found := shutil.which(f"python{version}"))]
    for candidate in [chosen] if chosen else [*named, sys.executable]:
        version = _version(candidate)
        if version in stack.interpreters:
            return candidate
        if chosen:
            what = f"is Python {version}" if version else "cannot be run"
            raise ConfigError(
                f"BENCH_STACK_PYTHON={chosen} {what}: stack={stack.name} needs {' or '.join(stack.interpreters)}"
            )
    return None


def _version(python: str) -> str | None:
    """Such as 3.11; None for what is no working interpreter, such as a shim of pyenv."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
