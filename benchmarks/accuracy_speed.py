"""Is an accuracy run as fast as lm-eval's own, and the same? The full LAMBADA files.

    python -m benchmarks.accuracy_speed FILE.jsonl...                      a random Llama of 30 M parameters, fp32, CPU
    python -m benchmarks.accuracy_speed --model llama-2-7b --dtype float16 --device cuda --batch 64 FILE.jsonl

compares the commands, model load included. With `--session REPEATS` one process loads the model once, and the two take
turns at evaluating all documents: documents per second of `bench.accuracy.evaluate`, and of `lm_eval.evaluate` with
lm-eval's own interface to transformers. On both sides the model, the tokenizer and the task are there before the clock
starts, the batch is the same, the log-softmax is taken in fp32, every document is kept, and nothing is bootstrapped.

A file's name says its task: lambada_openai.jsonl is lambada_openai, others lambada_standard. The model has random
weights and a tokenizer trained on the file. lm-eval gets a task file that includes its own and names the local data, as
its documentation says.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import bench.accuracy
import bench.table
from bench.cell import Cell, Evaluate
from bench.compose import compose
from bench.models.spec import Model
from bench.record import Evaluation

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
M30 = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10,
    "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 16384, "max_position_embeddings": 2048,
}  # fmt: skip


def random_model(name: str | None, dtype: str, device: str) -> Any:
    """A model with random weights."""
    import torch

    from bench.models import build

    if name:
        composed = compose([f"model={name}", "weights=random", "device=fake"])
        assert composed
        model = composed[0][0].cells[0].model
    else:
        model = Model("m30", weights="random", architecture=json.dumps(M30))
    return build.load(model, getattr(torch, dtype), torch.device(device), seed=0)


def save_tokenizer(folder: Path, data: Path, vocab_size: int) -> None:
    """A tokenizer of at most so many tokens, trained on the texts of a file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((json.loads(line)["text"] for line in data.open()), trainer)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>").save_pretrained(folder)


def local_task(data: Path, task: str, folder: Path) -> None:
    """A file in lm-eval's form: its task, with local data, under the name `local`."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec and spec.origin
    own = Path(spec.origin).parent / "tasks" / "lambada" / f"{task}.yaml"
    (folder / "local.yaml").write_text(
        f"include: {own}\ntask: local\ntag: null\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\nvalidation_split: null\ntest_split: test\n"
    )


def lm_eval(model: Path, data: Path, task: str, dtype: str, device: str, batch: int, folder: Path) -> tuple[float, ...]:
    """Wall time, accuracy and perplexity of lm-eval's own command."""
    local_task(data, task, folder)
    seconds = timed(
        "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype={dtype},softmax_dtype=float32",
        "--tasks", "local", "--include_path", folder, "--device", device, "--batch_size", batch, "--output_path",
        folder / "lm-eval.json",
    )  # fmt: skip
    (found,) = folder.glob("lm-eval*.json")
    result = json.loads(found.read_text())["results"]["local"]
    return seconds, result["acc,none"], result["perplexity,none"]


def own(model: Path, data: Path, task: str, dtype: str, device: str, batch: int, folder: Path) -> tuple[float, ...]:
    """Wall time, accuracy and perplexity of `bench run`, and documents per second."""
    seconds = timed(
        "-m", "bench", "run", f"model={model}", "workload=accuracy", f"accuracy.task={task}", f"accuracy.data={data}",
        f"accuracy.batch_size={batch}", f"precision={PRECISIONS[dtype]}", f"device={device}", f"results={folder}/own",
    )  # fmt: skip
    (outcome,) = bench.table.outcomes(folder / "own")
    assert isinstance(outcome, Evaluation), outcome
    return seconds, outcome.score("acc").value, outcome.score("perplexity").value, outcome.n / outcome.seconds


def timed(*arguments: object) -> float:
    """Seconds that this interpreter takes to run the arguments; what it says is shown when it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env={**os.environ, **OFFLINE},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return time.perf_counter() - start


def session(model: Any, tokenizer: Path, data: Path, task: str, batch: int, repeats: int, folder: Path) -> None:
    """Both in this process, in turn: a row per repeat, and the median ratio."""
    import lm_eval
    import lm_eval.tasks
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    local_task(data, task, folder)
    theirs = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False).load(["local"])
    asked = HFLM(
        pretrained=model,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        batch_size=batch,
        softmax_dtype="float32",
    )
    whole = Cell(
        model=Model("session", source="path", path=str(tokenizer)),
        workload=Evaluate(task, batch_size=batch, data=str(data)),
    )

    def bare(limit: int | None) -> tuple[float, float, float, int]:
        start = time.perf_counter()
        found = lm_eval.evaluate(asked, theirs, limit=limit, bootstrap_iters=0)
        seconds = time.perf_counter() - start
        result = found["results"]["local"]
        return seconds, result["acc,none"], result["perplexity,none"], len(found["samples"]["local"])

    def ours(limit: int | None) -> tuple[float, float, float, int]:
        cell = replace(whole, workload=replace(whole.workload, limit=limit))
        result = bench.accuracy.evaluate(cell, model, lambda phase: None)
        scores = {score.name: score.value for score in result.scores}
        return result.seconds, scores["acc"], scores["perplexity"], result.n

    for run in (bare, ours):
        run(4 * batch)
    print("| repeat | lm-eval, documents/s | bench, documents/s | ratio | accuracy | perplexity, relative difference |")
    print("|---:|---:|---:|---:|---|---:|", flush=True)
    ratios = []
    for number in range(repeats):
        found = {run: run(None) for run in ((bare, ours) if number % 2 == 0 else (ours, bare))}
        (s1, acc1, ppl1, n1), (s2, acc2, ppl2, n2) = found[bare], found[ours]
        assert n1 == n2, f"{n1} and {n2} documents"
        ratios.append(s1 / s2)
        same = "identical" if acc1 == acc2 else f"{acc1} and {acc2}"
        print(
            f"| {number + 1} | {n1 / s1:.1f} | {n2 / s2:.1f} | {ratios[-1]:.3f} | {same} | "
            f"{abs(ppl2 / ppl1 - 1):.1e} |",
            flush=True,
        )
    print(
        f"\n{data.name}: bench evaluates {median(ratios):.3f} times as many documents per second (median of {repeats})"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a name of configs/model; by default a Llama of 30 M parameters")
    parser.add_argument("--dtype", default="float32", choices=PRECISIONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--session", type=int, metavar="REPEATS", help="both in one process, the model loaded once")
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    os.environ |= OFFLINE
    files = [path.resolve() for path in given.files]
    tasks = ["lambada_openai" if "openai" in data.name else "lambada_standard" for data in files]
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        loaded = random_model(given.model, given.dtype, given.device)
        save_tokenizer(model, files[0], min(int(M30["vocab_size"]), loaded.config.vocab_size))
        if given.session:
            loaded.config.save_pretrained(model)
            for data, task in zip(files, tasks, strict=True):
                session(loaded, model, data, task, given.batch, given.session, Path(folder))
            return
        loaded.save_pretrained(model)
        del loaded
        print("| file | lm-eval's command | bench run | ratio | accuracy | perplexity, relative difference | docs/s |")
        print("|---|---:|---:|---:|---|---:|---:|", flush=True)
        for number, (data, task) in enumerate(zip(files, tasks, strict=True)):
            place = Path(folder) / str(number)
            place.mkdir()
            settings = (model, data, task, given.dtype, given.device, given.batch, place)
            theirs = lm_eval(*settings)
            ours = own(*settings)
            same = "identical" if theirs[1] == ours[1] else f"{theirs[1]} and {ours[1]}"
            print(
                f"| {data.name} | {theirs[0]:.1f} s | {ours[0]:.1f} s | {ours[0] / theirs[0]:.2f} | {same} | "
                f"{abs(ours[2] / theirs[2] - 1):.1e} | {ours[3]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
