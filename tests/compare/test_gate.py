"""Margins, corrections, waivers, confirmation, baselines, noise floors."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pandas as pd
import pytest

from bench.compare.cli import main
from bench.compare.compare import compare
from bench.compare.read import read_side
from bench.compare.rerun import overrides
from bench.compare.settings import Settings
from bench.errors import ConfigError
from tests.compare.conftest import noisy, rows


def launches(value: float, metric: str = "tpot_s", k: int = 5, spread: float = 0.001) -> list[dict[str, float]]:
    return [{metric: value * (1 + spread * (i - (k - 1) / 2))} for i in range(k)]


def outcome(save, base, cand, **options):
    return compare(read_side([save(base, "base")]), read_side([save(cand, "cand")]), Settings(**options))


def verdict(save, base, cand, metric="tpot_s", **options):
    comparison = outcome(save, rows(launches(base, metric)), rows(launches(cand, metric), run="b"), **options)
    (result,) = [r for r in comparison.results if r.metric == metric]
    return result.verdict, round(result.margin, 4), result.margin_source


@pytest.mark.parametrize(
    ("metric", "base", "change", "expected"),
    [
        ("tpot_s", 0.02, 1.05, ("regressed", 0.03, "default")),
        ("tpot_s", 0.02, 1.02, ("equivalent", 0.03, "default")),
        ("ttft_s", 0.1, 1.04, ("equivalent", 0.05, "default")),
        ("ttft_s", 0.1, 1.06, ("regressed", 0.05, "default")),
        ("peak_memory_bytes", 1e9, 1.03, ("regressed", 0.02, "default")),
        ("load_s", 10.0, 1.15, ("equivalent", 0.2, "default")),
    ],
)
def test_default_margins(save, metric, base, change, expected):
    assert verdict(save, base, base * change, metric, metrics=(metric,)) == expected


def test_absolute_floor_widens_the_margin_of_small_values(save):
    """0.05 ms of a TPOT of 0.5 ms is 10 %, taken of the geometric mean of both sides."""
    found = verdict(save, 0.0005, 0.0005 * 1.06)
    assert found == ("equivalent", round(0.1 / 1.06**0.5, 4), "absolute floor")
    assert verdict(save, 0.0005, 0.0005 * 1.06, abs_floor={"tpot_s": 0.0})[0] == "regressed"


def test_delta_by_metric_and_for_all(save):
    assert verdict(save, 0.02, 0.0208, delta={"": 0.05}) == ("equivalent", 0.05, "--delta")
    assert verdict(save, 0.02, 0.0208, delta={"": 0.05, "tpot_s": 0.02}) == ("regressed", 0.02, "--delta")


def test_rules_first_match_wins_after_delta(save, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(
        "version: 1\nrules:\n- match: {model: '*LLAMA*', metric: tpot, batch: '<=4'}\n  delta: 8%\n"
        "- match: {model: '*'}\n  delta: 1%\n  abs: 0.001ms\n"
    )
    assert verdict(save, 0.02, 0.0214, thresholds=str(path)) == ("equivalent", 0.08, "rule 1")
    assert verdict(save, 0.02, 0.0214, thresholds=str(path), delta={"": 0.05}) == ("regressed", 0.05, "--delta")
    assert verdict(save, 0.1, 0.103, "ttft_s", thresholds=str(path)) == ("regressed", 0.01, "rule 2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: []", "version: 1"),
        ("version: 1\nrule: []", "unknown entry 'rule'"),
        ("version: 1\nrules: [{delta: 3%}]", "rule 1 needs 'match"),
        ("version: 1\nrules: [{match: {modell: x}, delta: 3%}]", "Did you mean model"),
        ("version: 1\nrules: [{match: {model: x}}]", "rule 1 sets nothing"),
        ("version: 1\nwaivers: [{match: {model: x}, until: soon}]", "'soon' is no date"),
        ("version: 1\nwaivers: [{match: {model: x}, maxx: 3%}]", "unknown entry 'maxx'"),
        ("version: [", "is no YAML"),
    ],
)
def test_a_wrong_thresholds_file(save, tmp_path, text, words):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        verdict(save, 0.02, 0.02, thresholds=str(path))


def test_waivers_cover_up_to_their_maximum_until_their_end(save, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(
        "version: 1\nwaivers:\n- match: {metric: tpot}\n  max: 12%\n  until: 2026-12-01\n  why: known, issue 41\n"
        "- match: {model: nobody}\n  why: unused\n"
    )
    day = datetime.date(2026, 12, 1)

    def found(change: float, today: datetime.date):
        base, cand = rows(launches(0.02)), rows(launches(0.02 * change), run="b")
        return outcome(save, base, cand, thresholds=str(path), today=today)

    waived = found(1.10, day)
    assert (waived.results[0].verdict, waived.results[0].waived, waived.exit_code) == (
        "regressed",
        "known, issue 41",
        0,
    )
    assert waived.warnings == ["waiver 2 covers nothing: remove it (unused)"]
    assert found(1.15, day).exit_code == 1
    expired = found(1.10, day + datetime.timedelta(1))
    assert expired.exit_code == 1
    assert expired.warnings[0] == "waiver 1 expired on 2026-12-01 and no longer applies: known, issue 41"


def test_a_waived_missing_cell(save, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("version: 1\nwaivers:\n- match: {metric: status, batch: 8}\n  why: no memory\n")
    base = pd.concat([rows(launches(0.02)), rows(launches(0.02), batch_size=8)])
    assert outcome(save, base, rows(launches(0.02), run="b"), thresholds=str(path)).exit_code == 0


def test_corrections_only_take_back_what_they_cannot_support(save):
    """p just below .05 in one of many tests does not survive; a large change does."""
    base, cand = noisy(10, 4, 3, sd=0.01), noisy(10, 4, 4, sd=0.01, run="b")
    cand.loc[cand.batch_size == 1, "tpot_s"] *= 1.3
    cand.loc[cand.batch_size == 2, "tpot_s"] *= 1.05
    plain, bh, holm = (outcome(save, base, cand, correction=name) for name in ("none", "bh", "holm"))
    for comparison in (bh, holm):
        for before, after in zip(plain.results, comparison.results, strict=True):
            q = {"regressed": after.q_worse, "improved": after.q_better}.get(before.verdict)
            assert after.verdict == ("inconclusive" if q is not None and q > 0.05 else before.verdict)
    assert all(h.q_worse >= b.q_worse >= b.p_worse for h, b in zip(holm.results, bh.results, strict=True))
    assert "regressed" in holm.counts
    assert plain.counts["regressed"] >= bh.counts["regressed"] >= holm.counts["regressed"]


def test_confirm_list_makes_regressions_provisional(save, tmp_path, capsys):
    paths = [save(rows(launches(0.02)), "base"), save(rows(launches(0.024), run="b"), "cand")]
    todo = tmp_path / "rerun.txt"
    assert main([*paths, "--confirm-list", str(todo)]) == 3
    line = "model=llama3-8b weights=real engine=eager precision=bf16 'num_beams=[1]' 'batch_size=[1]' device=xpu"
    assert todo.read_text() == f"{line} launcher=local tp=none world_size=1 'lengths=[1024/128]'\n"
    gone = pd.concat([rows(launches(0.02)), rows(launches(0.02), batch_size=8)])
    assert main([save(gone, "gone"), paths[1], "--confirm-list", str(todo)]) == 1


@pytest.mark.parametrize(
    "axes",
    [
        {"num_beams": 4, "decoding": "beam", "batch_size": 8},
        {"decoding": "sample", "engine": "static(compile=False)"},
        {"env": "A_B=1 C=x"},
    ],
)
def test_overrides_compose_to_the_same_cell(axes):
    from bench import compose

    key = {"model": "tiny", "weights": "random", "engine": "eager", "precision": "bf16", "decoding": "greedy"}
    key |= {"num_beams": "1", "batch_size": "1", "input_tokens": "64", "output_tokens": "16", "device": "fake"}
    key |= {"launcher": "local", "tp": "none", "world_size": "1", "stack": "current", "task": "generate", "env": ""}
    key |= {name: str(value) for name, value in axes.items()}
    composed = compose.compose(overrides(key), "bench run")
    assert composed is not None
    (request,) = composed[0]
    (cell,) = request.cells
    assert {name: str(value) for name, value in cell.axes().items()} == key


def test_update_baseline_only_when_the_gate_passes(save, tmp_path, capsys):
    paths = [save(rows(launches(0.02)), "base"), save(rows(launches(0.0200001), run="b"), "cand")]
    target = tmp_path / "baselines/new.csv"
    assert main([*paths, "--update-baseline", str(target)]) == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(target)[["tpot_s", "batch_size", "run"]], pd.read_csv(paths[1])[["tpot_s", "batch_size", "run"]]
    )
    assert main([paths[1], str(target)]) == 0
    slow = save(rows(launches(0.03), run="c"), "slow")
    before = target.read_text()
    assert main([paths[0], slow, "--update-baseline", str(target)]) == 1
    assert target.read_text() == before


def times(frame: pd.DataFrame, first: int, step: int) -> pd.DataFrame:
    base = pd.Timestamp("2026-01-01T00:00:00Z")
    return frame.assign(
        started=[(base + pd.Timedelta(minutes=first + step * (n - 1))).isoformat() for n in frame.launch]
    )


def test_sequential_sessions_are_marked_and_strict_does_not_trust_them(save, capsys):
    base, cand = times(rows(launches(0.02)), 0, 1), times(rows(launches(0.02), run="b"), 100, 1)
    paths = [save(base, "base"), save(cand, "cand")]
    assert main([*paths, "--all"]) == 0
    out = capsys.readouterr().out
    assert "equivalent†" in out and "sequential" in out and "drift is not separable" in out
    assert main([*paths, "--strict"]) == 3
    mixed = [save(times(rows(launches(0.02)), 0, 2), "a"), save(times(rows(launches(0.02), run="b"), 1, 2), "b")]
    assert main([*mixed, "--strict"]) == 0


def test_blocks_are_compared_in_pairs_and_remove_drift(save):
    """A drift of 3 % a launch hides a change of 6 % from the unpaired test, not from the paired one."""
    drift = [1.03**i for i in range(6)]
    base = rows([{"tpot_s": 0.02 * d * (1 + 0.001 * (i % 2))} for i, d in enumerate(drift)])
    cand = rows([{"tpot_s": 0.0212 * d} for d in drift], run="b")
    assert outcome(save, base, cand).results[0].verdict == "inconclusive"
    block = list(range(1, 7))
    comparison = outcome(
        save, base.assign(block=block), cand.assign(block=block[::-1]).iloc[::-1].assign(block=block[::-1])
    )
    (result,) = comparison.results
    assert (result.tier, result.verdict, comparison.session) == ("T1p", "regressed", "interleaved")
    d = np.log([0.0212 / (0.02 * (1 + 0.001 * (i % 2))) for i in range(6)])
    assert result.se == pytest.approx(max(d.std(ddof=1), 2**0.5 * 0.001) / 6**0.5)
    pairs = [dict(zip(result.base_blocks, result.base_launches, strict=True))]
    pairs.append(dict(zip(result.cand_blocks, result.cand_launches, strict=True)))
    assert result.d == pytest.approx(np.mean([np.log(pairs[1][i] / pairs[0][i]) for i in block]))


def floor_file(save, tmp_path, sd: float = 0.01, k: int = 10, cells: int = 4, **fixed) -> str:
    path = str(tmp_path / "noise.json")
    assert main(["noise", save(noisy(cells, k, 7, sd=sd, **fixed), "aa"), "--out", path]) == 0
    return path


def test_noise_floor_records_what_the_launches_did(save, tmp_path, capsys):
    """A drift of 1 % a launch, the first launch 20 % slower."""
    values = [0.02 * 1.01**i * (1.2 if i == 0 else 1) for i in range(8)]
    path = tmp_path / "n.json"
    frame = rows([{"tpot_s": v} for v in values])
    assert main(["noise", save(frame, "aa"), "--out", str(path)]) == 0
    (entry,) = json.loads(path.read_text())["cells"]
    x = np.log(values)
    assert entry["k"] == 8
    assert entry["launch_sd"] == pytest.approx(x.std(ddof=1))
    assert entry["first_launch_effect"] == pytest.approx(x[0] - x[1:].mean())
    assert entry["drift_per_launch"] == pytest.approx(np.polyfit(np.arange(8), x, 1)[0])
    assert main(["noise", save(frame[:4], "few"), "--out", str(path)]) == 2


def test_noise_floor_widens_margins_and_noisy_cells_leave_the_gate(save, tmp_path):
    base, cand = noisy(4, 6, 1, sd=0.001), noisy(4, 6, 2, sd=0.001, run="b", factor=1.07)
    assert outcome(save, base, cand).counts == {"regressed": 8}
    path = floor_file(save, tmp_path, sd=0.05, k=8)
    sds = {
        (e["key"]["batch_size"], e["metric"]): e["launch_sd"]
        for e in json.loads((tmp_path / "noise.json").read_text())["cells"]
    }
    results = outcome(save, base, cand, noise_floor=path).results
    defaults = {"ttft_s": 0.05, "tpot_s": 0.03}
    for result in results:
        wanted = 2 * sds[result.key["batch_size"], result.metric]
        assert result.margin == pytest.approx(max(defaults[result.metric], min(wanted, 0.10)))
        assert result.gates == (wanted <= 0.10)
        assert result.gates or result.notes[0] == "noisy: twice its launch SD is above 10%, so it does not gate"
    assert {result.gates for result in results} == {True, False}


@pytest.mark.parametrize(("n", "half"), [(3, 0.050), (5, 0.030), (10, 0.024), (20, 0.021)])
def test_prediction_interval_of_one_launch(save, tmp_path, n, half):
    """`compare.md` 2.6: one candidate launch against N base launches at 1 % noise."""
    from bench.compare.kernels import t_quantile

    assert float(t_quantile(0.975, n - 1.0)) * 0.01 * (1 + 1 / n) ** 0.5 == pytest.approx(half, abs=6e-4)


def test_one_launch_with_a_noise_floor_is_suspect_at_most(save, tmp_path):
    floor = floor_file(save, tmp_path, sd=0.005)
    base = noisy(4, 5, 1, sd=0.002)
    for factor, expected in ((1.5, "suspect"), (1.0, "inconclusive")):
        comparison = outcome(save, base, noisy(4, 1, 2, sd=0.002, factor=factor, run="b"), noise_floor=floor)
        assert set(comparison.counts) == {expected}
        assert all(r.interval == "95% prediction" and r.lower < r.ratio < r.upper for r in comparison.results)
    gated = outcome(save, base, noisy(4, 1, 2, factor=1.5, run="b"), noise_floor=floor, allow_single=True)
    assert (set(gated.counts), gated.exit_code) == ({"regressed"}, 1)


def test_allow_single_is_a_plain_threshold_and_says_so(save, capsys):
    paths = [save(noisy(2, 1, 1), "base"), save(noisy(2, 1, 1, factor=1.06, run="b"), "cand")]
    assert main([*paths, "--allow-single"]) == 1
    assert "no statistics" in capsys.readouterr().out


def test_a_noise_floor_of_another_time_or_machine_warns(save, tmp_path):
    floor = floor_file(save, tmp_path, device_name="Max 1550")
    base, cand = noisy(2, 3, 1), noisy(2, 3, 2, run="b")
    old = outcome(save, base, cand, noise_floor=floor, today=datetime.date.today() + datetime.timedelta(31))
    assert any("31 days old" in warning for warning in old.warnings)
    assert any("device_name Max 1550, the candidate with Arc B580" in warning for warning in old.warnings)
    with pytest.raises(ConfigError, match="is no noise floor"):
        outcome(save, base, cand, noise_floor=save(base, "not_a_floor"))


def test_plan_and_self_check(save, tmp_path, capsys):
    floor = floor_file(save, tmp_path, sd=0.01)
    capsys.readouterr()
    assert main(["plan", "--noise-floor", floor, "--mde", "3%"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "cell",
        "metric",
        "launch",
        "SD",
        "K",
        "to",
        "see",
        "3%",
        "K",
        "to",
        "prove",
        "unchanged",
    ]
    assert len(lines) == 1 + 8 + 1 and lines[-1].startswith("all cells: launches=")
    assert main(["plan", "--noise-floor", floor, "--power", "2"]) == 2
    assert main(["self-check", save(noisy(3, 8, 5, sd=0.004), "aa")]) == 0
    assert capsys.readouterr().out.startswith("A/A: 0 of 120 flagged at the margin (0.00 %), 20 splits; at margin 0 ")
    assert main(["self-check", save(noisy(3, 3, 5), "few")]) == 2
    data = json.loads((tmp_path / "noise.json").read_text())
    assert data["self_check"]["tests"] == 160


def test_the_rate_of_the_self_check_is_in_the_report(save, tmp_path, capsys):
    floor = floor_file(save, tmp_path, sd=0.004)
    base, cand = save(noisy(2, 3, 1), "base"), save(noisy(2, 3, 2, run="b"), "cand")
    assert main([base, cand, "--noise-floor", floor]) == 0
    assert "A/A on this machine: 0 of 160 flagged" in capsys.readouterr().out


def test_common_shift_is_named_and_removed(save):
    base, cand = noisy(8, 5, 1, sd=0.002), noisy(8, 5, 2, sd=0.002, factor=1.021, run="b")
    comparison = outcome(save, base, cand)
    assert [round(s.shift, 2) for s in comparison.suites] == [1.02, 1.02]
    assert all(abs(r.shift_removed - 1) < 0.01 for r in comparison.results)
    assert [s.shift for s in outcome(save, base, noisy(8, 5, 3, sd=0.002, run="c")).suites] == [None, None]


def test_marginals_name_what_the_flagged_cells_share(save):
    frames = []
    for precision in ("bf16", "int4"):
        for beams in (1, 4):
            frames.append(noisy(4, 4, beams, sd=0.002, precision=precision, num_beams=beams))
    base = pd.concat(frames)
    cand = base.assign(run="b")
    cand.loc[(cand.precision == "int4") & (cand.num_beams == 4), "tpot_s"] *= 1.2
    sentences = outcome(save, base, cand).marginals
    assert sentences[0] in (
        "4 of 4 flagged cells have precision=int4, num_beams=4",
        "4 of 4 flagged cells have num_beams=4, precision=int4",
    )
    assert "4 of 4 flagged cells have precision=int4 (8 of 16 cells do)" in sentences


def test_suite_leaves_out_what_is_not_on_both_sides(save):
    base = noisy(5, 4, 1, sd=0.001)
    cand = base.assign(run="b")
    cand = cand[cand.batch_size != 5]
    cand.loc[cand.batch_size == 1, ["status", "ttft_s", "tpot_s"]] = ["oom", None, None]
    assert [(s.ratio, s.cells, s.of) for s in outcome(save, base, cand).suites] == [(1.0, 3, 5), (1.0, 3, 5)]


def test_percentiles_gate_only_with_enough_samples(save):
    def frame(iterations, run):
        return rows(
            [{"itl_p99_s": 0.03 + i * 1e-5} for i in range(4)], run=run, iterations=iterations, output_tokens=32
        )

    few = outcome(save, frame(9, "a"), frame(9, "b"), metrics=("itl_p99",)).results
    assert [(r.gates, r.notes) for r in few] == [
        (False, ["does not gate: 279 inter-token gaps are too few for this percentile"])
    ]
    enough = outcome(save, frame(10, "a"), frame(10, "b"), metrics=("itl_p99",)).results
    assert [(r.gates, r.notes) for r in enough] == [(True, [])]


def test_an_outlier_launch_is_noted(save):
    base = rows([{"tpot_s": v} for v in (0.02, 0.0201, 0.0202, 0.0203)])
    cand = rows([{"tpot_s": v} for v in (0.02005, 0.02015, 0.02025, 0.2)], run="b")
    (result,) = outcome(save, base, cand).results
    assert any("spread" in note for note in result.notes)


def test_output_tokens_are_compared(save, capsys):
    base = noisy(3, 3, 1).assign(output_hash="aa")
    cand = noisy(3, 3, 2, run="b").assign(output_hash="aa")
    cand.loc[cand.batch_size == 2, "output_hash"] = "bb"
    paths = [save(base, "base"), save(cand, "cand")]
    assert main(paths) == 0
    assert "output tokens identical in 2 of 3 cells" in capsys.readouterr().out
    assert main([*paths, "--expect-identical"]) == 1


def test_tokens_that_vary_between_iterations_are_equal_to_nothing(save, capsys):
    paths = [save(noisy(3, 3, seed, run=name).assign(output_hash=["varies"] * 3 + ["aa"] * 6), name)
             for seed, name in ((1, "base"), (2, "cand"))]  # fmt: skip
    assert main(paths) == 0
    assert "output tokens identical in 2 of 3 cells" in capsys.readouterr().out
