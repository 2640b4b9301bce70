"""Every column of results.csv, with its role. Readers ask this registry and never guess from a column's spelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA = 1
"""Version of the record and of results.csv. Raised when a column changes its meaning; old files stay readable."""

Role = Literal["key", "launch", "status", "metric", "env_hard", "env_soft", "info"]
Kind = Literal["duration", "rate", "bytes", "proportion", "count", "text"]
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Column:
    """One column of results.csv."""

    name: str
    role: Role
    doc: str
    """What it means, with the formula for a metric."""
    kind: Kind = "text"
    unit: str = ""
    """Base unit: s, byte, token/s, or nothing. ms and GiB exist in reports only."""
    better: Better | None = None
    """The direction of a metric; None for one that is neither good nor bad."""
    primary: bool = False
    """Whether a regression of it may fail a gate. The others are functions of primary ones and never gate twice."""


AXES = (
    Column("model", "key", "name of the model's YAML in configs/model"),
    Column("weights", "key", "real or random"),
    Column("engine", "key", "how a token is produced, with the settings that differ from its defaults"),
    Column("precision", "key", "format of the weights, with the settings that differ from its defaults"),
    Column("decoding", "key", "greedy, beam or sample"),
    Column("num_beams", "key", "beams per prompt", "count"),
    Column("batch_size", "key", "prompts, or documents of an accuracy task, per call", "count"),
    Column("input_tokens", "key", "tokens of each prompt; 0 for an accuracy task", "count"),
    Column("output_tokens", "key", "tokens generated for each prompt; 0 for an accuracy task", "count"),
    Column("device", "key", "xpu, cuda, cpu or fake"),
    Column("launcher", "key", "how the worker's processes are started"),
    Column("tp", "key", "tensor parallelism: none, deepspeed or transformers"),
    Column("world_size", "key", "number of ranks", "count"),
    Column("stack", "key", "the worker's environment: an option of configs/stack, or a label"),
    Column("task", "key", "generate, or the name of an lm-eval task"),
    Column("env", "key", "environment variables set as a sweep axis"),
)

RUN = (
    Column("launch", "launch", "fresh process number, from 1: the unit of replication", "count"),
    Column("status", "status", "ok, or the failure's kind"),
    Column("error", "info", "the failure's message"),
)

ACCURACY = (
    Column("acc", "metric", "share of documents answered rightly", "proportion", "", "higher", primary=True),
    Column("acc_stderr", "info", "standard error of acc: the documents' standard deviation / sqrt(n)", "proportion"),
    Column(
        "perplexity",
        "metric",
        "exp of the mean negative log-likelihood of a document",
        "count",
        "",
        "lower",
        primary=True,
    ),
    Column("perplexity_stderr", "info", "standard error of perplexity, by the delta method", "count"),
    Column("n", "info", "documents evaluated", "count"),
    Column("docs_per_s", "metric", "documents answered per second, reading the data apart", "rate", "doc/s", "higher"),
)
"""Figures of accuracy tasks. They are compared by document (`compare/accuracy.py`), never as a ratio of launches."""

INFO = (
    Column("samples", "info", "file with one line per document of an accuracy task, relative to the results folder"),
    Column("task_version", "env_hard", "version of an accuracy task"),
    Column("num_fewshot", "env_hard", "worked examples before each document", "count"),
    Column("data", "info", "where the documents come from"),
    Column("data_sha256", "env_hard", "checksum over the documents"),
    Column("dataset_revision", "info", "what the hub calls the version of the documents"),
    Column("iterations", "info", "measured iterations", "count"),
    Column("warmup", "info", "warm-up iterations before them", "count"),
    Column("seed", "info", "seed of weights and prompts", "count"),
    Column("approximation", "info", "what stands in for an architecture that transformers does not have"),
    Column("provider", "env_hard", "library that converted the weights; blank for plain formats"),
    Column("provider_version", "env_soft", "its version"),
    Column("kernels", "env_hard", "real, or emulated: floats that were rounded to the format"),
    Column(
        "packed_bytes",
        "info",
        "bytes of all weights as stored, scales and embedding included",
        "bytes",
        "byte",
    ),
    Column("warnings", "info", "what the worker noticed, separated by '; '"),
    Column("other_cores", "info", "processors that other processes kept busy while measuring", "count"),
    Column("output_hash", "info", "hash of the generated tokens: equal hashes, equal tokens"),
    Column("started", "info", "UTC time at which the cell began"),
    Column("cell", "info", "hash over everything that matters: the resume token"),
    Column("block", "info", "interleaved pair of launches, from 1: one launch of each build", "count"),
    Column("order", "info", "position of the launch within its block, from 1", "count"),
    Column("run", "info", "id of the command that measured it"),
    Column("log", "info", "log file, relative to the results folder"),
    Column("schema", "env_hard", "version of this table", "count"),
)

FINGERPRINT = (
    Column("clock", "env_hard", "event (device events) or perf_counter"),
    Column("device_name", "env_hard", "what the driver calls the device"),
    Column("device_count", "env_hard", "devices visible to the worker", "count"),
    Column("model_revision", "env_hard", "commit of the checkpoint, where the hub names one"),
    Column("threads", "env_hard", "intra-op threads of torch", "count"),
    Column("device_memory_bytes", "env_soft", "total memory of the device", "bytes", "byte"),
    Column("driver", "env_soft", "version of the device's driver"),
    Column("torch", "env_soft", "version of torch"),
    Column("transformers", "env_soft", "version of transformers"),
    Column("adapters", "env_soft", "versions of the other libraries that took part"),
    Column("python", "env_soft", "version of the worker's Python"),
    Column("bench", "env_soft", "version of bench"),
    Column("git", "env_soft", "commit of the working directory's repository, + when it has changes"),
    Column("os", "env_soft", "operating system"),
    Column("kernel", "env_soft", "version of the kernel"),
    Column("cpu", "env_soft", "name of the processor"),
    Column("cpu_count", "env_soft", "processors this process may use", "count"),
    Column("governor", "env_soft", "frequency governor of the processor"),
    Column("hostname_hash", "env_soft", "tells machines apart without naming them"),
    Column("variables", "env_soft", "the SYCL, ZE, CCL, IPEX, OMP and similar variables that were set"),
)
