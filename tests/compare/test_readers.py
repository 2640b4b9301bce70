"""Files of other tools, as those tools write them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from bench.compare.cli import main
from bench.compare.importer import main as import_main
from bench.compare.read import read_side
from bench.errors import ResultsError

SINGLE = """\
Namespace(model_id='meta-llama/Llama-2-7b-hf', sub_model_name='llama2-7b', device='xpu', dtype='float16', \
input_tokens='1024', max_new_tokens=128, greedy=False, ipex=True, num_beams=4, num_iter=10, num_warmup=3, batch_size=1)
*** Starting to generate 128 tokens for 1024 tokens with num_beams=4
---- Prompt size: 1024
Iteration: 0, Time: 4.901234 sec
Iteration: 9, Time: 3.501234 sec
---------- Summary: ----------
Inference latency: 3.51234 sec.
First token average latency: 0.61234 sec.
Average 2... latency: 0.02283 sec.
Accuracy check pass
"""

DEEPSPEED = """\
[0] *** Starting to generate 128 tokens for 1024 tokens with num_beams=1
[1] *** Starting to generate 128 tokens for 1024 tokens with num_beams=1
[0] Inference latency: 2.51200 sec.
[1] Inference latency: 2.51300 sec.
[0] First token average latency: 0.30010 sec.
[1] First token average latency: 0.30020 sec.
[0] Average 2... latency: 0.01740 sec.
[0] P90 2... latency: 0.01790 sec.
[0] P99 2... latency: 0.02050 sec.
[0] *** Starting to generate 32 tokens for 32 tokens with num_beams=1
[0] Inference latency: 0.60000 sec.
[0] First token average latency: 0.05000 sec.
[0] Average 2... latency: 0.01700 sec.
"""

WOQ = """\
Namespace(model_id='Qwen/Qwen2-7B-Instruct', device='xpu', dtype='float16', input_tokens='1024', max_new_tokens=128, \
greedy=True, woq_algo='RTN', num_beams=4, num_iter=10, num_warmup=3, batch_size=1)
*** Starting to generate 128 tokens for 1024 tokens with num_beams=1
Inference latency: 1.901 sec.
First token average latency: 0.291234 sec.
Average 2... latency: 0.012345 sec.
"""


def read(path: Path) -> pd.DataFrame:
    return read_side([str(path)]).frame


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_ipex_single_process_log(tmp_path):
    (row,) = read(write(tmp_path / "log_e2e", SINGLE)).to_dict("records")
    assert (row["model"], row["precision"], row["num_beams"], row["decoding"]) == ("Llama-2-7b-hf", "fp16", "4", "beam")
    assert (row["input_tokens"], row["output_tokens"], row["engine"], row["device"]) == ("1024", "128", "ipex", "xpu")
    assert (float(row["e2e_s"]), float(row["ttft_s"]), float(row["tpot_s"])) == (3.51234, 0.61234, 0.02283)
    assert (row["status"], row["schema"], row["warmup"]) == ("ok", "ipex-run_generation", "3")


def test_ipex_deepspeed_log_takes_the_slowest_rank_and_every_length(tmp_path):
    folder = tmp_path / "perf/meta-llama/Llama-2-13b-hf/beam1_bs1_input1024_out128_ranknum2"
    first, second = read(write(folder / "log_e2e_ds", DEEPSPEED)).to_dict("records")
    assert (first["model"], first["world_size"], first["tp"]) == ("Llama-2-13b-hf", "2", "deepspeed")
    assert (float(first["e2e_s"]), float(first["ttft_s"])) == (2.513, 0.3002)
    assert (float(first["itl_p90_s"]), float(first["itl_p99_s"])) == (0.0179, 0.0205)
    assert (second["input_tokens"], second["output_tokens"], float(second["e2e_s"])) == ("32", "32", 0.6)


def test_ipex_weight_only_log(tmp_path):
    (row,) = read(write(tmp_path / "log", WOQ)).to_dict("records")
    assert (row["precision"], row["decoding"], row["engine"]) == ("woq_int4", "greedy", "ipex")
    assert float(row["resolution_s"]) == 1e-6
    assert (float(row["e2e_s"]), float(row["ttft_s"]), float(row["tpot_s"])) == (1.901, 0.291234, 0.012345)


def test_ipex_cpu_log_in_milliseconds(tmp_path):
    text = (
        SINGLE.replace("3.51234 sec", "3512.34 ms")
        .replace("0.61234 sec", "612.34 ms")
        .replace("0.02283 sec", "22.83 ms")
    )
    (row,) = read(write(tmp_path / "log", text)).to_dict("records")
    assert (row["e2e_s"], row["ttft_s"], row["tpot_s"]) == ("3.51234", "0.61234", "0.02283")


def test_ipex_log_of_a_crash_is_a_failure(tmp_path):
    text = SINGLE.split("Iteration")[0] + "RuntimeError: Native API failed. UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY\n"
    (row,) = read(write(tmp_path / "log", text)).to_dict("records")
    assert (row["status"], row["model"]) == ("oom", "Llama-2-7b-hf")
    assert "OUT_OF_DEVICE_MEMORY" in row["error"]


IPEX_LLM = """\
,model,1st token avg latency (ms),2+ avg latency (ms/token),encoder time (ms),input/output tokens,batch_size,\
actual input/output tokens,num_beams,low_bit,cpu_embedding,model loading time (s),peak mem (GB),streaming,\
use_fp16_torch_dtype
0,meta-llama/Llama-2-7b-chat-hf,1262.63,36.1,0.0,1024-128,1,1024-128,1,sym_int4,,6.22,5.09375,N/A,N/A
1,Qwen/Qwen2-7B-Instruct,91.84,21.05,0.0,32-32,1,32-32,1,sym_int4,,4.5,N/A,N/A,N/A
"""


def test_ipex_llm_csv(tmp_path):
    first, second = read(write(tmp_path / "transformer_int4_gpu-results-2025-01-15.csv", IPEX_LLM)).to_dict("records")
    assert (first["model"], first["precision"], first["input_tokens"], first["output_tokens"]) == (
        "Llama-2-7b-chat-hf", "sym_int4", "1024", "128",
    )  # fmt: skip
    assert (first["ttft_s"], first["tpot_s"], first["load_s"]) == ("1.26263", "0.0361", "6.22")
    assert float(first["peak_memory_bytes"]) == 5.09375 * 2**30
    assert second["peak_memory_bytes"] == ""


def test_rounding_of_a_legacy_csv_widens_its_variance(tmp_path):
    """0.01 ms of 1 ms is 1 %, whose SD is 0.29 %: more than the floor of 0.1 %."""
    from bench.compare.compare import compare
    from bench.compare.settings import Settings

    sides = []
    for name in "ab":
        for launch in range(3):
            text = IPEX_LLM.splitlines()[0] + f"\n0,m,10.0{launch},1.00,0,32-32,1,32-32,1,int4,,1,1,,\n"
            write(tmp_path / name / f"{name}{launch}.csv", text)
        sides.append(read_side([str(tmp_path / name / "*.csv")]))
    (tpot,) = [r for r in compare(*sides, Settings()).results if r.metric == "tpot_s"]
    assert tpot.se == pytest.approx(0.01 / 12**0.5 * (2 / 3) ** 0.5)


LLAMA = {
    "build_commit": "8cf427ff", "build_number": 5163, "cpu_info": "Ryzen 7", "gpu_info": "RTX 4080", "backends": "CUDA",
    "model_filename": "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf", "model_type": "qwen2 7B Q4_K - Medium",
    "model_size": 4677120000, "model_n_params": 7615616512, "n_batch": 2048, "n_ubatch": 512, "n_threads": 8,
    "flash_attn": False, "n_prompt": 512, "n_gen": 0, "n_depth": 0, "test_time": "2025-04-24T11:58:50Z",
    "avg_ns": 72135640, "stddev_ns": 1453752, "avg_ts": 7100.002165, "stddev_ts": 140.34152,
}  # fmt: skip


def test_llama_bench_json_jsonl_and_csv_agree(tmp_path):
    tests = [LLAMA, {**LLAMA, "n_prompt": 0, "n_gen": 128, "avg_ns": 1076767880, "avg_ts": 118.881588}]
    with_samples = [{**test, "samples_ns": [1, 2], "samples_ts": [1.0, 2.0]} for test in tests]
    plain = [{k: int(v) if isinstance(v, bool) else v for k, v in test.items()} for test in tests]
    write(tmp_path / "a.json", json.dumps(with_samples, indent=2))
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, with_samples)))
    write(tmp_path / "a.csv", pd.DataFrame(plain).to_csv(index=False))
    frames = [read(tmp_path / name).drop(columns=["run", "_file"]) for name in ("a.json", "a.jsonl", "a.csv")]
    pd.testing.assert_frame_equal(frames[0], frames[1])
    pd.testing.assert_frame_equal(frames[0], frames[2])
    prompt, generation = frames[0].to_dict("records")
    assert (prompt["task"], float(prompt["ttft_s"])) == ("prefill", pytest.approx(0.07213564))
    assert (generation["task"], float(generation["tpot_s"])) == ("decode", pytest.approx(1.07676788 / 128))
    assert (prompt["model"], prompt["precision"]) == ("Qwen2.5-7B-Instruct-Q4_K_M", "Q4_K - Medium")
    assert "n_ubatch=512" in prompt["engine"]


def test_llama_bench_settings_tell_cells_apart(tmp_path):
    tests = [LLAMA, {**LLAMA, "n_ubatch": 256, "avg_ns": 2 * LLAMA["avg_ns"]}]
    path = str(write(tmp_path / "a.json", json.dumps(tests)))
    assert main([path, path, "--out", f"json={tmp_path}/o.json"]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["comparisons"][0]["cells"] == 2


def optimum(values):
    return {
        "latency": {"unit": "s", "values": values, "p50": values[0]},
        "memory": {"unit": "MB", "max_ram": 2000.0, "max_allocated": 141.5},
    }


OPTIMUM_CONFIG = {
    "name": "run", "backend": {"name": "pytorch", "version": "2.6.0", "model": "meta-llama/Llama-3.1-8B",
    "device": "cuda", "no_weights": True, "torch_dtype": "bfloat16", "quantization_scheme": None},
    "scenario": {"input_shapes": {"batch_size": 2, "sequence_length": 64},
    "generate_kwargs": {"max_new_tokens": 65, "num_beams": 1}},
    "environment": {"cpu": " EPYC", "gpu": ["A100", "A100"], "transformers_version": "4.50.0"},
}  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
def test_optimum_benchmark_report(tmp_path, together):
    report = {
        "load_model": optimum([27.5]),
        "prefill": optimum([0.1316]),
        "decode": optimum([6.4]),
        "per_token": optimum([9.9]),
    }
    if together:
        path = write(tmp_path / "benchmark.json", json.dumps({"config": OPTIMUM_CONFIG, "report": report}))
    else:
        write(tmp_path / "benchmark_config.json", json.dumps(OPTIMUM_CONFIG))
        path = write(tmp_path / "benchmark_report.json", json.dumps(report))
    (row,) = read(path).to_dict("records")
    assert (float(row["ttft_s"]), float(row["tpot_s"]), float(row["load_s"])) == (0.1316, 0.1, 27.5)
    assert (row["model"], row["weights"], row["precision"], row["batch_size"]) == (
        "Llama-3.1-8B",
        "random",
        "bf16",
        "2",
    )
    assert (row["input_tokens"], row["output_tokens"], float(row["peak_memory_bytes"])) == ("64", "65", 141.5e6)
    assert len(read_side([str(tmp_path)]).frame) == 1


LM_EVAL = {
    "results": {
        "lambada_openai": {
            "alias": "lambada_openai", "perplexity,none": 3.45, "perplexity_stderr,none": 0.06, "acc,none": 0.73,
            "acc_stderr,none": 0.0062,
        },
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A"},
        "mmlu": {"acc,none": 0.6, "alias": "mmlu"},
    },
    "group_subtasks": {"mmlu": ["mmlu_law"], "lambada_openai": []},
    "versions": {"lambada_openai": 1.0, "gsm8k": 3.0},
    "n-shot": {"lambada_openai": 0, "gsm8k": 5},
    "n-samples": {
        "lambada_openai": {"original": 5153, "effective": 5153}, "gsm8k": {"original": 1319, "effective": 1319},
    },
    "config": {
        "model": "hf", "model_args": "pretrained=meta-llama/Llama-2-7b-hf,dtype=float16", "batch_size": "8",
        "device": "xpu:0",
    },
    "git_hash": "abc", "transformers_version": "4.51.3", "model_name": "meta-llama/Llama-2-7b-hf",
}  # fmt: skip


def test_lm_eval_results(tmp_path):
    lambada, gsm8k = read(write(tmp_path / "results_2025-01-01.json", json.dumps(LM_EVAL))).to_dict("records")
    assert (lambada["model"], lambada["precision"], lambada["device"], lambada["task"]) == (
        "Llama-2-7b-hf", "fp16", "xpu", "lambada_openai",
    )  # fmt: skip
    assert (lambada["acc"], lambada["acc_stderr"], lambada["perplexity"], lambada["n"]) == (
        "0.73",
        "0.0062",
        "3.45",
        "5153",
    )
    assert lambada["schema"] == "lm-eval lambada_openai version 1.0, 0-shot"
    assert (gsm8k["acc"], gsm8k["acc_stderr"]) == ("0.5", "")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "hello\n", "is no result file"),
        ("a.csv", "x,y\n1,2\n", "is no result file"),
        ("a.csv", "model,ttft_s\na,1\nb,1,2,3\n", "cannot read"),
        ("a.csv", "model,ttft_s,ttft_ms\na,1,1000\n", "has both ttft_s and ttft_ms"),
        ("a.csv", "model,ttft_s\n", "has no rows"),
        (
            "b.csv",
            ",model,1st token avg latency (ms),2+ avg latency (ms/token),input/output tokens\n0,m,abc,1,32-32\n",
            "b.csv:2",
        ),
        ("benchmark_report.json", "{broken", "damaged optimum-benchmark report"),
        ("benchmark_report.json", "{}", "no prefill"),
        ("r.json", '{"results": {"t": {"acc_norm,none": 1}}}', "no task in it reports"),
        ("l.json", '[{"build_commit": 1, "n_prompt": 5, "n_gen": 0}]', "damaged llama-bench"),
    ],
)
def test_a_damaged_file_gets_one_line(tmp_path, capsys, name, text, words):
    path = str(write(tmp_path / name, text))
    with pytest.raises(ResultsError, match=words):
        read_side([path])
    assert main([path, path]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench: ") and error.count("\n") == 1


@pytest.mark.parametrize("path", ["nowhere.csv", "nothing-*.csv"])
def test_a_missing_file_gets_one_line(path, capsys):
    assert main([path, path]) == 2
    assert path in capsys.readouterr().err


def test_an_empty_folder_says_what_it_expected(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "expected results.csv, journal.jsonl or an ipex-llm all-in-one CSV" in capsys.readouterr().err


def test_import_writes_our_columns_and_compares_the_same(tmp_path, capsys):
    write(tmp_path / "perf/org/model-x/beam4_bs1_input1024_out128/log_e2e", SINGLE)
    out = tmp_path / "out/results.csv"
    assert import_main([str(tmp_path / "perf"), "--out", str(out)]) == 0
    frame = pd.read_csv(out)
    assert list(frame.columns[:4]) == ["model", "engine", "precision", "decoding"]
    assert frame.ttft_s.tolist() == [0.61234]
    assert main([str(tmp_path / "perf"), str(out)]) == 0
    assert import_main([str(tmp_path / "nowhere")]) == 2
    assert import_main([]) == 2


def test_two_tools_are_not_comparable(tmp_path, capsys):
    a = str(write(tmp_path / "a.csv", IPEX_LLM))
    b = pd.DataFrame(read_side([a]).frame).assign(schema="1").drop(columns=["_file", "_line"])
    b.to_csv(tmp_path / "b.csv", index=False)
    assert main([a, str(tmp_path / "b.csv")]) == 4
    assert "schema differs: ipex-llm-all-in-one and 1" in capsys.readouterr().out
