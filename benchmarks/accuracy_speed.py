"""Is an accuracy run as fast as lm-eval's own command, and the same? The full LAMBADA files, model load included.

    python -m benchmarks.accuracy_speed FILE.jsonl...                      a random Llama of 30 M parameters, fp32, CPU
    python -m benchmarks.accuracy_speed --model llama-2-7b --dtype float16 --device cuda --batch 64 FILE.jsonl

A file's name says its task: lambada_openai.jsonl is lambada_openai, others lambada_standard. The model's folder, with
random weights and a tokenizer trained on the file, is made first; both commands then read it. lm-eval gets a task file
that includes its own and names the local data, as its documentation says, and its log-softmax is taken in fp32.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import bench.table
from bench.compose import compose
from bench.record import Evaluation

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
M30 = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10,
    "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 16384, "max_position_embeddings": 2048,
}  # fmt: skip


def make(folder: Path, name: str | None, dtype: str, device: str, data: Path) -> None:
    """A model folder with random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from bench.models import build
    from bench.models.spec import Model

    if name:
        composed = compose([f"model={name}", "weights=random", "device=fake"])
        assert composed
        model = composed[0][0].cells[0].model
    else:
        model = Model("m30", weights="random", architecture=json.dumps(M30))
    loaded = build.load(model, getattr(torch, dtype), torch.device(device), seed=0)
    loaded.save_pretrained(folder)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=M30["vocab_size"],
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((json.loads(line)["text"] for line in data.open()), trainer)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>").save_pretrained(folder)


def lm_eval(model: Path, data: Path, task: str, dtype: str, device: str, batch: int, folder: Path) -> tuple[float, ...]:
    """Wall time, accuracy and perplexity of lm-eval's own command."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec and spec.origin
    own = Path(spec.origin).parent / "tasks" / "lambada" / f"{task}.yaml"
    (folder / "local.yaml").write_text(
        f"include: {own}\ntask: local\ntag: null\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\nvalidation_split: null\ntest_split: test\n"
    )
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
        [sys.executable, *map(str, arguments)], env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a name of configs/model; by default a Llama of 30 M parameters")
    parser.add_argument("--dtype", default="float32", choices=PRECISIONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    print("| file | lm-eval's command | bench run | ratio | accuracy | perplexity, relative difference | docs/s |")
    print("|---|---:|---:|---:|---|---:|---:|", flush=True)
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make(model, given.model, given.dtype, given.device, given.files[0])
        for number, data in enumerate(path.resolve() for path in given.files):
            task = "lambada_openai" if "openai" in data.name else "lambada_standard"
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
