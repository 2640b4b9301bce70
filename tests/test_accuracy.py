"""Accuracy: the built-in task and model, lm-eval's own answers, local data, guards, tables, comparison."""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench import accuracy, passages
from bench.cell import Cell, Choice, Evaluate, Generate
from bench.errors import CellError, LoadError, NonFinite
from bench.models.spec import Model
from bench.tasks import LAMBADA
from tests.conftest import ROOT, Bench, run_script

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")

DATA = ROOT.parent / "shared" / "data"
SHIPPED = ROOT / "bench" / "models" / "tiny_trained"
MODEL = Model("tiny-trained", source="package", path="models/tiny_trained")
RUN = ("run", "model=tiny-trained", "workload=accuracy", "device=cpu", "precision=fp32", "results=out")


def cell(task: str = "passages", model: Model = MODEL, **changes: Any) -> Cell:
    """A cell that evaluates the shipped model in fp32."""
    return Cell(model=model, workload=Evaluate(task, **changes), precision=Choice("fp32"), iterations=1, warmup=0)


@pytest.fixture
def trained() -> Any:
    """The shipped model in fp32."""
    return AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()


@pytest.fixture(name="bench")
def _bench(bench: Bench) -> Bench:
    """One thread: two of them wait for each other most of the time where other processes run."""
    bench.env["OMP_NUM_THREADS"] = "1"
    return bench


def rows(folder: Path) -> list[dict[str, str]]:
    """results.csv, as text."""
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def documents(folder: Path, row: dict[str, str]) -> list[dict[str, Any]]:
    """The per-document file of a row."""
    return [json.loads(line) for line in (folder / row["samples"]).read_text().splitlines()]


def local_file(tmp_path: Path, texts: list[str]) -> Path:
    """A file of documents."""
    path = tmp_path / "local.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def quiet(phase: str) -> None:
    """Nobody listens."""


# -- the built-in task -------------------------------------------------------------------------------------------------


def test_a_passage_is_needed_whole_to_know_its_last_word():
    texts = passages.held_out()
    assert len(set(texts)) == len(texts) == passages.COUNT
    answers: dict[str, set[str]] = {}
    for text in texts:
        sentence = passages.last_sentence(text)
        head, _, answer = sentence.rpartition(" ")
        assert text.count(f"{head.rpartition(' ')[2]} {answer}") == 2, "told once before, and asked for"
        answers.setdefault(head, set()).add(answer)
    many = [len(found) for found in answers.values() if len(found) > 1]
    assert len(many) > 0.9 * len(answers), "the same last sentence has different answers"
    learnt = {" ".join(passages.passage(passages.TRAINING + number, 4)[0]) for number in range(20_000)}
    assert not [text for text in texts if text.removesuffix(passages.last_sentence(text)).strip() in learnt]


def test_the_shipped_model_reads_the_whole_passage(bench: Bench):
    done = bench(*RUN)
    assert done.code == 0, done.stderr
    (row,) = rows(bench.cwd / "out")
    assert row["status"] == "ok" and row["task"] == "passages" and row["n"] == "2000"
    assert float(row["acc"]) >= 0.60
    assert float(row["acc_stderr"]) == pytest.approx(
        math.sqrt(float(row["acc"]) * (1 - float(row["acc"])) / 1999), rel=1e-6
    )
    assert float(row["perplexity"]) < 16 and float(row["perplexity_stderr"]) > 0 and float(row["docs_per_s"]) > 0
    assert (row["data"], row["num_fewshot"], row["task_version"]) == ("built in", "0", "1.0")
    assert (row["decoding"], row["num_beams"], row["input_tokens"], row["output_tokens"]) == ("greedy", "1", "0", "0")
    assert "lm-eval=" in row["adapters"] and row["ttft_s"] == "" and row["iterations"] == ""
    found = documents(bench.cwd / "out", row)
    assert len(found) == 2000 and found[0]["doc"]["text"] == passages.text(0)
    assert sum(item["acc"] for item in found) / 2000 == pytest.approx(float(row["acc"]))
    assert "accuracy" in done.stdout and "±" in done.stdout and "TTFT" not in done.stdout
    assert "± " in (bench.cwd / "out" / "report.md").read_text()
    assert "docs/s" in (bench.cwd / "out" / "report.html").read_text()
    again = bench(*RUN, "iterations=3")
    assert "nothing to do" in again.stderr, "iterations are of generating"


def test_a_reader_of_the_last_sentence_has_to_guess(trained: Any, tmp_path: Path):
    data = local_file(tmp_path, [passages.last_sentence(text) for text in passages.held_out(500)])
    result = accuracy.evaluate(cell("lambada_standard", data=str(data)), trained, quiet)
    assert result.n == 500
    assert result.scores[1].name == "acc" and result.scores[1].value < 0.20


def test_the_shipped_files_are_small_and_what_the_yaml_says():
    node = yaml.safe_load((ROOT / "configs" / "model" / "tiny-trained.yaml").read_text())
    weights = SHIPPED / "model.safetensors"
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 4e6
    assert node["revision"] == hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    loaded = AutoModelForCausalLM.from_pretrained(SHIPPED)
    assert node["parameters"] == sum(item.numel() for item in loaded.parameters())
    config = json.loads((SHIPPED / "config.json").read_text())
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert config[key] == node["architecture"][key], key


@pytest.mark.slow
def test_the_command_makes_the_shipped_model(tmp_path: Path):
    """The same torch on the same processor gives the same bytes; elsewhere at least the same accuracy."""
    done = subprocess.run([sys.executable, "-m", "bench.train_tiny", str(tmp_path)], cwd=ROOT, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert "step" in done.stderr
    assert (tmp_path / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert accuracy.evaluate(cell(limit=500), model, quiet).scores[1].value >= 0.60


# -- lm-eval's own answers ---------------------------------------------------------------------------------------------


def small(folder: Path, data: Path) -> Model:
    """A random Llama, so wide in its values that tokens differ clearly, and a tokenizer made for the data."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()[:1000]]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2048, special_tokens=["<|end|>"],
                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                         vocab_size=2048, max_position_embeddings=512, initializer_range=0.2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return Model("small", source="path", path=str(folder))


@pytest.mark.parametrize("task", ["lambada_openai", "lambada_standard"])
def test_the_full_files_give_what_lm_eval_gives(task: str, tmp_path: Path):
    """Own tokenising, batches and rows of logits against lm-eval's: a small model on real text, every document."""
    path = DATA / f"{task}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.relative_to(ROOT.parent)} is not here")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = small(tmp_path / "small", path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
    result = accuracy.evaluate(cell(task, model, data=str(path)), loaded, quiet)
    assert result.n == 5153
    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks" / "lambada"  # type: ignore[union-attr,arg-type]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(
        f"include: {tasks / task}.yaml\ntask: local\ntag: null\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{test: {path}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        f"validation_split: null\ntest_split: test\n"
    )
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    theirs = simple_evaluate(
        model=HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=16, softmax_dtype="float32"),
        tasks=["local"], task_manager=manager, bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    ours = {item["doc_id"]: item for item in result.documents}
    for sample in theirs["samples"]["local"]:
        mine = ours[sample["doc_id"]]
        for key in ("doc_hash", "prompt_hash", "target_hash", "acc"):
            assert mine[key] == sample[key]
        assert mine["perplexity"] == pytest.approx(sample["perplexity"], abs=1e-4)
    found = {score.name: score.value for score in result.scores}
    assert found["acc"] == theirs["results"]["local"]["acc,none"]
    assert found["perplexity"] == pytest.approx(theirs["results"]["local"]["perplexity,none"], rel=1e-4)


def test_a_document_that_is_there_twice_slows_nothing_down(trained: Any, tmp_path: Path):
    """LAMBADA has a few: the output layer still runs for the asked positions only."""
    data = local_file(tmp_path, [*passages.held_out(20), passages.text(3)])
    whole = trained.forward
    kept = []

    def forward(self: Any, input_ids: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        kept.append((input_ids.shape[1], logits_to_keep))
        return whole(input_ids, logits_to_keep=logits_to_keep, **kwargs)

    trained.forward = types.MethodType(forward, trained)
    result = accuracy.evaluate(cell("lambada_standard", data=str(data)), trained, quiet)
    assert result.n == 21 and result.documents[3]["perplexity"] == pytest.approx(
        result.documents[20]["perplexity"], abs=1e-5
    )
    batches = kept[2:]  # after the look at what the model does
    assert len(batches) == 2 and all(0 < keep < length / 2 for length, keep in batches), kept


def test_choices_of_one_context_and_few_shots(trained: Any, tmp_path: Path):
    """A multiple-choice task goes through lm-eval's own scoring; worked examples come from the local file, too."""
    path = tmp_path / "local.jsonl"
    options = ["red", "blue", "green", "white"]
    path.write_text("".join(
        json.dumps({"support": f"anna has the {colour} lantern .", "question": "which ?", "correct_answer": colour,
                    "distractor1": "pink", "distractor2": "black", "distractor3": "grey"}) + "\n"
        for colour in options
    ))  # fmt: skip
    result = accuracy.evaluate(cell("sciq", data=str(path), num_fewshot=1), trained, quiet)
    assert (result.n, result.num_fewshot) == (4, 1)
    names = [score.name for score in result.scores]
    assert "acc" in names and "acc_norm" in names
    assert all(len(item["filtered_resps"]) == 4 for item in result.documents)


# -- data --------------------------------------------------------------------------------------------------------------


def test_data_is_known_by_its_content(tmp_path: Path, trained: Any):
    work = Evaluate("lambada_standard", data_sha256="1", data="/a")
    same = dataclasses.replace(work, data="/b", allow_random=True)
    base = cell()
    first, second = (dataclasses.replace(base, workload=item) for item in (work, same))
    assert first == second and first.id == second.id and first.load_key == base.load_key
    assert Cell.from_json(json.loads(json.dumps(first.to_json()))).workload.data == "/a"  # type: ignore[union-attr]
    for change in ({"task": "t"}, {"batch_size": 1}, {"limit": 3}, {"num_fewshot": 1}, {"data_sha256": "2"}):
        assert dataclasses.replace(base, workload=dataclasses.replace(work, **change)).id != first.id
    assert "/a" not in json.dumps(first.axes())
    data = local_file(tmp_path, passages.held_out(20))
    built_in = accuracy.evaluate(cell(limit=20), trained, quiet)
    local = accuracy.evaluate(cell("lambada_standard", data=str(data)), trained, quiet)
    assert built_in.data_sha256 == local.data_sha256
    assert [item["perplexity"] for item in built_in.documents] == [item["perplexity"] for item in local.documents]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a b"}\n{', "local.jsonl:2 is not JSON"),
        ("[1]", "local.jsonl:1: an object per line is needed"),
        ("\n", "local.jsonl has no documents"),
    ],
)
def test_damaged_data_is_one_line(content: str, message: str, tmp_path: Path, trained: Any):
    path = tmp_path / "local.jsonl"
    path.write_text(content)
    with pytest.raises(LoadError, match=message):
        accuracy.evaluate(cell("lambada_standard", data=str(path)), trained, quiet)


def test_mistakes_stop_before_anything_is_launched(bench: Bench):
    for argument, message in {
        "accuracy.data=nowhere.jsonl": "accuracy.data=nowhere.jsonl cannot be read: No such file or directory",
        "accuracy.limit=0": "accuracy.limit=0: an integer of at least 1 is needed",
        "accuracy.batch_size=auto": "accuracy.batch_size: Value 'auto' of type 'str' could not be converted to Integer",
        "accuracy.tsk=a": "unknown key in accuracy 'tsk'. Did you mean task?",
        "accuracy.task=[]": "accuracy.task is empty: give at least one task",
        "accuracy.task=../x": "accuracy.task=../x: the name of an lm-eval task is needed",
        "accuracy.include=nowhere": "accuracy.include=nowhere is no folder",
        "accuracy.include=.": "has no .yaml file",
    }.items():
        done = bench("plan", "workload=accuracy", argument, "device=fake")
        assert done.code == 2 and message in done.line.removeprefix("bench: "), done.stderr


def test_offline_and_unknown_tasks_are_failures_of_one_line(bench: Bench):
    done = bench(*RUN, "accuracy.task=[lambada_openai,lambada_opnai]")
    assert done.code == 1
    found = {row["task"]: (row["status"], row["error"]) for row in rows(bench.cwd / "out")}
    status, error = found["lambada_openai"]
    assert (
        status == "load"
        and "the documents of lambada_openai are not in the local cache and HF_HUB_OFFLINE is set" in error
        and "\n" not in error
    )
    assert "accuracy.data=FILE.jsonl" in error
    assert (
        found["lambada_opnai"][0] == "unsupported"
        and "lm-eval has no task lambada_opnai, nor a group or tag of that name. Did you mean lambada_openai"
        in found["lambada_opnai"][1]
    )


# -- groups and tags ---------------------------------------------------------------------------------------------------


def own_tasks(folder: Path) -> Path:
    """Task files in lm-eval's form: two tasks under a tag, a group of both inside another, and one without figures."""
    folder.mkdir()
    for name, seeds in {"one": range(30), "two": range(30, 100)}.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"text": passages.text(seed)}) + "\n" for seed in seeds))
        task = {"task": name, "tag": "both", "dataset_path": "json", "metadata": {"version": 3.0},
                "dataset_kwargs": {"data_files": {"test": str(data)}}, **LAMBADA_WITHOUT_VERSION}  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    groups = {
        "outer": {"task": ["inner"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]},
        "inner": {"task": ["one", "two"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}]},
        "bare": {"task": ["one", "two"]},
    }
    for name, group in groups.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, **group}))
    return folder


LAMBADA_WITHOUT_VERSION = {key: value for key, value in LAMBADA.items() if key != "metadata"}


def test_a_group_has_a_row_and_each_of_its_tasks_too(bench: Bench, tmp_path: Path):
    folder = own_tasks(bench.cwd / "tasks")
    done = bench(*RUN, f"accuracy.include={folder}", "accuracy.task=outer")
    assert done.code == 0, done.stderr
    found = {row["task"]: row for row in rows(bench.cwd / "out")}
    assert {name: int(row["n"]) for name, row in found.items()} == {"outer": 100, "inner": 100, "one": 30, "two": 70}
    acc = {name: float(row["acc"]) for name, row in found.items()}
    assert acc["outer"] == pytest.approx(0.3 * acc["one"] + 0.7 * acc["two"]), "lm-eval's, weighted by size"
    assert acc["inner"] == pytest.approx((acc["one"] + acc["two"]) / 2), "lm-eval's, unweighted"
    errors = {name: float(row["acc_stderr"]) for name, row in found.items()}
    assert errors["outer"] == pytest.approx(math.sqrt(acc["outer"] * (1 - acc["outer"]) / 99))
    assert errors["inner"] == pytest.approx(math.hypot(errors["one"], errors["two"]) / 2)
    assert found["outer"]["perplexity"] == "" and float(found["one"]["perplexity"]) > 1
    assert len({row["samples"] for row in found.values()}) == 4 and found["one"]["task_version"] == "3.0"
    assert [item["task"] for item in documents(bench.cwd / "out", found["outer"])] == ["one"] * 30 + ["two"] * 70
    assert all(name in done.stdout for name in found), "the table on the screen has them all"
    again = bench(*RUN, f"accuracy.include={folder}", "accuracy.task=outer")
    assert "nothing to do" in again.stderr and all(name in again.stdout for name in found)
    alone = bench(*RUN, f"accuracy.include={folder}", "accuracy.task=one")
    assert "nothing to do" in alone.stderr, "measured with its group"
    itself = bench("compare", "out", "out", "--acc-min-n", "10", "--acc-margin", "9pp", "--format", "json")
    (comparison,) = json.loads(itself.stdout)["comparisons"]
    paired = {item["key"]["task"]: item for item in comparison["results"] if item["metric"] == "acc"}
    assert {item["verdict"] for item in paired.values()} == {"non-inferior"}, itself.stdout
    assert {name: item["accuracy"]["n"] for name, item in paired.items()} == {
        name: int(found[name]["n"]) for name in found
    }
    (folder / "one.yaml").write_text((folder / "one.yaml").read_text() + "num_fewshot: 1\n")
    changed = bench("plan", *RUN[1:], f"accuracy.include={folder}", "accuracy.task=one")
    assert changed.code == 0 and found["one"]["cell"] not in changed.stdout, "other task files, another cell"


@pytest.mark.parametrize("name", ["both", "bare"])
def test_a_tag_or_bare_group_counts_all_documents(name: str, trained: Any, tmp_path: Path):
    folder = own_tasks(tmp_path / "tasks")
    result = accuracy.evaluate(cell(name, include=str(folder)), trained, quiet)
    one, two = (part for part in result.parts)
    assert (one.task, two.task, result.n) == ("one", "two", 100)
    together = {score.name: score for score in result.scores}
    whole = accuracy.evaluate(cell(limit=100), trained, quiet)
    for score in whole.scores:
        assert together[score.name].value == pytest.approx(score.value), "the same passages in one task"
        assert together[score.name].stderr == pytest.approx(score.stderr)


@pytest.mark.parametrize("name", ["lambada", "arithmetic", "mmlu"])
def test_names_of_lm_eval_itself_are_known(name: str, trained: Any, monkeypatch: pytest.MonkeyPatch):
    """Two tags and a group: known, and only their documents are out of reach here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LoadError, match=f"the documents of {name} are not in the local cache"):
        accuracy.evaluate(cell(name), trained, quiet)


def test_data_is_of_one_task(trained: Any, tmp_path: Path):
    data = local_file(tmp_path, passages.held_out(3))
    with pytest.raises(LoadError, match="is the data of one task, and lambada stands for several"):
        accuracy.evaluate(cell("lambada", data=str(data)), trained, quiet)


# -- guards ------------------------------------------------------------------------------------------------------------


def test_random_weights_are_refused_unless_asked_for(bench: Bench):
    done = bench("run", "model=tiny", "workload=accuracy", "device=cpu", "results=out")
    assert done.code == 1
    (row,) = rows(bench.cwd / "out")
    assert row["status"] == "unsupported" and row["error"].startswith("random weights know nothing")
    (row,) = rows_after(bench, "model=tiny", "accuracy.allow_random=true", "accuracy.task=passages", "accuracy.limit=5")
    assert row["status"] == "ok" and "the tokenizer of tiny-trained stands in" in row["warnings"]


def rows_after(bench: Bench, *arguments: str) -> list[dict[str, str]]:
    """results.csv of an accuracy run into a folder of its own."""
    done = bench("run", "workload=accuracy", "device=cpu", "results=other", *arguments)
    assert done.code == 0, done.stderr
    return rows(bench.cwd / "other")


def test_a_model_that_keeps_the_last_row_only_is_found(trained: Any):
    whole = trained.forward

    def last(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        output.logits = output.logits[:, -1:]
        return output

    trained.forward = types.MethodType(last, trained)
    with pytest.raises(CellError, match="1 rows of logits for 8 positions"):
        accuracy.evaluate(cell(limit=2), trained, quiet)


def test_a_model_without_the_option_to_leave_rows_out_gives_the_same(trained: Any):
    expected = accuracy.evaluate(cell(limit=20), trained, quiet)
    whole = trained.forward

    def forward(self: Any, input_ids: Any, use_cache: bool = False) -> Any:
        return whole(input_ids, use_cache=use_cache)

    trained.forward = types.MethodType(forward, trained)
    found = accuracy.evaluate(cell(limit=20), trained, quiet)
    for mine, theirs in zip(found.documents, expected.documents, strict=True):
        assert mine["perplexity"] == pytest.approx(theirs["perplexity"], abs=1e-5)


def test_log_likelihoods_have_to_be_numbers(trained: Any):
    with torch.no_grad():
        trained.model.norm.weight.fill_(math.nan)
    with pytest.raises(NonFinite, match="3 log-likelihoods are not finite"):
        accuracy.evaluate(cell(limit=3), trained, quiet)


def test_the_softmax_is_taken_in_fp32(trained: Any):
    half = copy.deepcopy(trained).bfloat16()
    values = [item["perplexity"] for item in accuracy.evaluate(cell(limit=30), half, quiet).documents]
    assert any(torch.tensor(value).bfloat16().item() != value for value in values)


def test_a_passage_that_is_too_long_is_reported(trained: Any):
    trained.config.max_position_embeddings = 60
    result = accuracy.evaluate(cell(limit=20), trained, quiet)
    (warning,) = result.warnings
    assert "passages were longer than the model's 60 positions" in warning


# -- with latency, on ranks, compared ----------------------------------------------------------------------------------


def test_latency_and_accuracy_share_a_model_and_a_table(bench: Bench):
    done = bench("run", "-m", "model=tiny-trained", "workload=generate,accuracy", "accuracy.limit=20", "device=cpu",
                 "precision=fp32", "lengths=8/4", "num_beams=1", "iterations=2", "warmup=1", "results=out")  # fmt: skip
    assert done.code == 0, done.stderr
    found = rows(bench.cwd / "out")
    assert [row["task"] for row in found] == ["generate", "passages"]
    assert len({row["log"] for row in found}) == 1, "one job, one loaded model"
    assert found[0]["acc"] == "" and float(found[0]["ttft_s"]) > 0
    assert found[1]["ttft_s"] == "" and float(found[1]["acc"]) > 0.5
    assert found[0]["load_s"] == found[1]["load_s"]
    assert "the tokenizer" not in found[0]["warnings"], "it has a tokenizer: prompts are prose"
    assert "TTFT" in done.stdout and "accuracy" in done.stdout
    import bench as package

    frame = package.load(bench.cwd / "out")
    assert frame["acc"].notna().tolist() == [False, True]
    assert len(package.load_samples(bench.cwd / "out")) == 3 * 4


@pytest.mark.skipif(
    not any((Path(sys.executable).parent / name).exists() or shutil.which(name) for name in ("mpirun", "torchrun")),
    reason="neither mpirun nor torchrun is here",
)
def test_two_ranks_answer_like_one(bench: Bench):
    one = bench(*RUN, "accuracy.limit=60")
    assert one.code == 0, one.stderr
    two = bench(*RUN[:-1], "results=two", "accuracy.limit=60", "launcher=torchrun", "world_size=2", "tp=transformers",
                "env.OMP_NUM_THREADS=1")  # fmt: skip
    assert two.code == 0, two.stdout + two.stderr
    ((first,), (second,)) = rows(bench.cwd / "out"), rows(bench.cwd / "two")
    assert second["world_size"] == "2" and second["acc"] == first["acc"]
    pairs = zip(documents(bench.cwd / "out", first), documents(bench.cwd / "two", second), strict=True)
    for mine, theirs in pairs:
        assert mine["doc_hash"] == theirs["doc_hash"]
        assert mine["perplexity"] == pytest.approx(theirs["perplexity"], abs=1e-5)
    assert len(list((bench.cwd / "two" / "jobs").glob("*/samples_*.jsonl"))) == 1, "written once"
    assert float(second["total_memory_bytes"]) > float(second["peak_memory_bytes"])


def rounded(folder: Path, bits: int) -> None:
    """A copy of the shipped model whose linear layers are rounded to some bits, one scale per 32 weights."""
    top = 2 ** (bits - 1) - 1
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                groups = module.weight.view(module.weight.shape[0], -1, 32)
                scale = groups.abs().amax(-1, keepdim=True) / top
                module.weight.copy_(((groups / scale).round() * scale).view_as(module.weight))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder)


def test_compare_tells_precisions_apart(bench: Bench, tmp_path: Path):
    """bf16 and 8 bits keep the answers and move the likelihoods, which is measured; 4 bits lose answers."""
    for precision in ("fp32", "bf16"):
        assert bench(*RUN[:4], f"precision={precision}", f"results={precision}").code == 0
    for name, bits in {"int8": 8, "int4": 4}.items():
        rounded(tmp_path / name / "tiny-trained", bits)
        done = bench("run", f"model={tmp_path / name / 'tiny-trained'}", *RUN[2:-1], "accuracy.task=passages",
                     f"results={name}")  # fmt: skip
        assert done.code == 0, done.stderr
    found = {
        name: accuracies(bench("compare", "fp32", name, "--ignore", "precision", "--format", "json").stdout)
        for name in ("fp32", "bf16", "int8", "int4")
    }
    verdicts = {name: metrics["acc"]["verdict"] for name, metrics in found.items()}
    assert verdicts == dict.fromkeys(("fp32", "bf16", "int8"), "non-inferior") | {"int4": "accuracy-regressed"}
    assert {item["acc"]["method"] for item in found.values()} == {"paired by document, Tango score interval"}
    base, cand = (float(rows(bench.cwd / name)[0]["acc"]) for name in ("fp32", "int4"))
    assert cand < base - 0.03, "4 bits are felt"
    for name, metrics in found.items():
        flips = metrics["acc"]["accuracy"]
        assert flips["n"] == 2000
        assert bool(flips["flips"]) == (name != "fp32") == bool(flips["documents"]), name
    flips = found["int4"]["acc"]["accuracy"]
    assert flips["lost"] - flips["gained"] == round(2000 * (base - cand))
    assert {"doc", "text", "target", "base", "cand"} <= flips["documents"][0].keys()
    changes = {name: metrics["perplexity"]["accuracy"]["loglikelihood"] for name, metrics in found.items()}
    assert (changes["fp32"]["changed"], changes["fp32"]["p"]) == (0, 1.0)
    assert changes["int8"]["changed"] == 2000 and changes["int8"]["p"] < 1e-3 and changes["int8"]["upper"] < 0
    assert found["int8"]["perplexity"]["verdict"] == "non-inferior", "measured, and harmless"
    assert changes["int4"]["p"] < 1e-100 and changes["int4"]["sd"] > 10 * changes["int8"]["sd"]
    shown = bench("compare", "fp32", "int8", "--all").stdout
    assert re.search(r"non-inferior: log-likelihood -0\.000\d\d \[-0\.\d+, -0\.\d+\] per document, p=\de-0\d", shown), (
        shown
    )
    assert "non-inferior: 6 of 2000 documents flipped" in shown


def accuracies(text: str) -> dict[str, dict[str, Any]]:
    """Results of accuracy metrics in the JSON of a comparison."""
    (data,) = json.loads(text)["comparisons"]
    return {item["metric"]: item for item in data["results"] if item["metric"] in ("acc", "perplexity")}


# -- the script --------------------------------------------------------------------------------------------------------


def test_the_script_honours_its_variables(tmp_path: Path):
    lines = run_script(
        "run_accuracy.sh", "results=here", cwd=tmp_path, limit="7", bs="3", dtype="float32", device="cpu"
    )
    (row,) = rows(tmp_path / "here")
    assert row["status"] == "ok", lines
    assert (row["model"], row["task"], row["n"], row["batch_size"]) == ("tiny-trained", "passages", "7", "3")
    assert (row["precision"], row["device"]) == ("fp32", "cpu")


def test_labels_and_generate_cells_are_as_before():
    assert str(cell(batch_size=4)) == "tiny-trained fp32 eager cpu passages bs4"
    assert Cell(model=MODEL, workload=Generate(1, 1)).axes()["task"] == "generate"
