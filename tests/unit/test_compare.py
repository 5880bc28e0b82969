"""Comparisons of runs whose figures are made up: what is read, judged, said and drawn."""

import json

import numpy as np
import pytest

from rl_bench.errors import ConfigError
from rl_bench.report import blocks, curves, plots, scores
from rl_bench.report.comparability import incomparable
from rl_bench.report.compare import compare
from rl_bench.report.load import find_arms, load_arms, load_run
from rl_bench.report.tables import report
from rl_bench.report.template import template
from rl_bench.report.write import write_comparison
from tests.conftest import read_json
from tests.synthetic import make_run


def make_arms(root, *, n=5, a=None, b=None, shift=1.0, **both):
    """Two arms of n runs in turns, A's return `shift` above B's; `a`, `b`: keys of each."""
    named = {"A": [], "B": []}
    for seed in range(n):
        for label, own, base in (("A", a or {}, 8.0 + shift), ("B", b or {}, 8.0)):
            value = base + 0.1 * (seed % 3)
            what = {"final": value, "held_out": value - 0.5, "seed": seed, **both, **own}
            start = f"2026-01-01T10:{2 * seed + (label == 'B'):02d}:00+00:00"
            named[label].append(str(make_run(root / f"{label}{seed}", start=start, **what)))
    return load_arms(named)


def test_the_primary_score_is_the_held_out_return(tmp_path):
    # Breaks when: training returns, or episodes, take the place of runs.
    document = compare(make_arms(tmp_path))
    game = document["games"]["procgen-coinrun-v0"]
    assert game["primary"] == "held_out"
    of_a = game["scores"]["held_out"]["arms"]["A"]
    assert of_a["values"] == pytest.approx([8.5, 8.6, 8.7, 8.5, 8.6])
    assert of_a["summary"]["n"] == 5
    assert game["scores"]["training"]["arms"]["A"]["summary"]["mean"] == pytest.approx(8.98)
    assert game["verdicts"][0].startswith("A is better than B by 1.00")
    assert document["incomparable"] == []


def test_without_evaluations_the_last_training_episodes_count(tmp_path):
    document = compare(make_arms(tmp_path, held_out=None))
    game = document["games"]["procgen-coinrun-v0"]
    assert game["primary"] == "last_episodes"
    assert "not every run was evaluated" in game["caution"][0]
    assert "held_out" not in game["scores"]


def test_three_runs_have_low_power_and_one_has_no_verdict(tmp_path):
    for n, words in ((3, "no evidence of a difference"), (1, "no verdict on A against B")):
        game = compare(make_arms(tmp_path / str(n), n=n))["games"]["procgen-coinrun-v0"]
        assert game["verdicts"][0].startswith(words)
        assert ("no interval can be given" in game["caution"][0]) == (n == 1)
        assert ("low power" in game["caution"][0]) == (n == 3)
        assert game["contrasts"][0]["better"] is None


def test_four_arms_are_compared_in_pairs_with_holm(tmp_path):
    # Breaks when: each pair is judged as if it were the only one.
    generator = np.random.default_rng(10)
    named = {
        label: [
            str(make_run(tmp_path / f"{label}{s}", seed=s, final=float(8 + generator.normal())))
            for s in range(5)
        ]
        for label in "ABCD"
    }
    contrasts = compare(load_arms(named))["games"]["procgen-coinrun-v0"]["contrasts"]
    assert len(contrasts) == 6
    least = min(contrasts, key=lambda c: c["p"])
    assert least["p_adjusted"] == pytest.approx(min(1.0, 6 * least["p"]))
    assert least["p"] < 0.05 < least["p_adjusted"], "the seed is chosen so that Holm decides"
    assert least["verdict"].startswith("no evidence")


INCOMPARABLE = {
    "machine": ({"system__cpu_model": "Other CPU"}, "machine differs: Test CPU, 2 cores (A); Oth"),
    "software": ({"system__torch": "2.0"}, "software differs"),
    "levels": ({"config__env__num_levels": 500}, "training levels differs: 200 from 0 (A); 500"),
    "mode": ({"config__env__distribution_mode": "hard"}, "distribution mode differs: easy (A); h"),
    "budget": ({"minutes": 20.0}, "budget differs: 600 seconds (A) to 1,200 seconds (B)"),
    "unspent": ({"budget__reached": 300.0}, "budget not spent: a run of B reached 300 of 600"),
    "kind": ({"budget__kind": "timesteps"}, "kind of budget differs: wall_clock (A); timesteps"),
    "evaluation": ({"held_out": None}, "evaluation differs: 500 stochastic episodes"),
}


@pytest.mark.parametrize("case", INCOMPARABLE)
def test_what_makes_runs_incomparable_is_said_first(case, tmp_path):
    changes, words = INCOMPARABLE[case]
    arms = make_arms(tmp_path, n=2, b=changes)
    text, files = write_comparison(arms, tmp_path / "out/comparison.png")
    assert text.startswith(f"NOT COMPARABLE: {words}")
    assert all(path.exists() for path in files)
    assert "NOT COMPARABLE" in (tmp_path / "out/benchmark_results.txt").read_text()


def test_runs_of_one_seed_are_not_independent(tmp_path):
    (line,) = incomparable(make_arms(tmp_path, n=2, seed=3))[:1]
    assert "same seed (3, 3)" in line


def test_one_arm_after_the_other_is_noted(tmp_path):
    in_turns = compare(make_arms(tmp_path / "turns", n=2))
    assert not any("in turns" in note for note in in_turns["notes"])
    apart = make_arms(tmp_path / "apart", n=2)
    for arm, hour in zip(apart, (10, 12), strict=True):
        for run in arm.runs:
            run.result["start_time"] = f"2026-01-01T{hour}:00:00+00:00"
    assert any("not in turns" in note for note in compare(apart)["notes"])


def test_settings_that_differ_are_listed(tmp_path):
    arms = make_arms(tmp_path, n=1, b={"algorithm": "IMPALA"})
    assert compare(arms)["settings_that_differ"] == {"training.batch_size": {"A": 1024, "B": 256}}


def test_throughput_is_a_ratio_of_medians(tmp_path):
    runs = {"A": (4000.0, 4100.0, 9000.0), "B": (2000.0, 2050.0, 2100.0)}
    named = {
        label: [str(make_run(tmp_path / f"{label}{i}", seed=i, fps=f)) for i, f in enumerate(fps)]
        for label, fps in runs.items()
    }
    document = compare(load_arms(dict(reversed(named.items()))))
    table = document["games"]["procgen-coinrun-v0"]["throughput"]
    assert [entry["arm"] for entry in table] == ["B", "A"]
    assert table[1]["ratio"] == 2.0
    low, high = table[1]["ratio_interval_95"]
    assert low < 2.0 < high


ODD = {
    "one run": {},
    "no finished episode": {"final": None},
    "interrupted": {"status": "interrupted", "budget__reached": 100.0},
    "failed at once": {"rows": 0, "final": None, "average_fps": None, "final_fps": None,
                       "timesteps_per_hour": None, "total_timesteps": 0},
    "a single row": {"rows": 1},
    "without evaluation": {"held_out": None},
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_runs_are_rendered(case, tmp_path):
    arms = make_arms(tmp_path, n=1, a=ODD[case])
    text, files = write_comparison(arms, tmp_path / "out/c.png")
    for path in files:
        assert path.stat().st_size > 100, path
    assert ("not reached" in text) == (
        case in ("no finished episode", "failed at once", "a single row")
    )
    assert text.count("not reached") <= 1, "only a threshold is reached or not"
    assert "nan" not in text.lower()
    read_json(tmp_path / "out/comparison_report.json")
    if case == "no finished episode":
        assert "no episode finished: it has no return" in text
    if case == "interrupted":
        assert "its status is 'interrupted'" in text


def test_one_arm_is_shown_too(tmp_path):
    text, _ = write_comparison(make_arms(tmp_path, n=3)[:1], tmp_path / "out/c.png")
    assert "A: 3 runs" in text
    assert "not in turns" not in text


def test_half_a_line_is_skipped_and_counted(tmp_path):
    directory = make_run(tmp_path / "run")
    rows = directory / "logs/PPO_Sequential/metrics.jsonl"
    rows.write_text(rows.read_text() + '{"time/total_timesteps": 99')
    run = load_run(directory)
    assert len(run.rows) == 60
    assert run.notes == ["1 broken or repeated lines of metrics.jsonl were skipped"]


def test_an_evaluation_of_another_checkpoint_is_left_out(tmp_path):
    directory = make_run(tmp_path / "run", held_out=8.0)
    (path,) = directory.glob("checkpoints/*.json")
    document = json.loads(path.read_text())
    assert load_run(directory).evaluation == document
    for changes in ({"timesteps": 7}, {"seed": 7}):
        path.write_text(json.dumps({**document, "checkpoint": document["checkpoint"] | changes}))
        run = load_run(directory)
        assert run.evaluation is None
        assert "is of another checkpoint" in run.notes[0]
    path.write_text(json.dumps(document))
    (directory / "checkpoints/ppo_sequential_final.pt").write_bytes(b"another run's weights")
    assert load_run(directory).evaluation is None


def test_rows_are_those_of_the_runs_own_mode(tmp_path):
    # Breaks when: the first metrics.jsonl that is found is taken for the run's.
    directory = make_run(tmp_path / "run")
    other = directory / "logs/IMPALA_Sequential/metrics.jsonl"
    other.parent.mkdir()
    other.write_text('{"time/total_timesteps": 1}')
    assert len(load_run(directory).rows) == 60


def test_a_run_by_timesteps_has_its_evaluation_beside_the_logs(tmp_path):
    run = make_run(tmp_path / "logs/PPO_Sequential", held_out=8.0)
    (run / "checkpoints").rename(tmp_path / "moved")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "moved").rename(tmp_path / "checkpoints/ppo_sequential")
    assert load_run(run).evaluation is not None


def test_an_arm_of_unlike_runs_is_said(tmp_path):
    arms = make_arms(tmp_path, n=2)
    arms[0].runs[1].result["config"]["training"]["num_envs"] = 64
    (line,) = incomparable(arms)
    assert line == "A has runs with different settings: training.num_envs"


def test_evaluations_may_differ_between_games(tmp_path):
    named = {}
    for label in "AB":
        for game in ("coinrun", "maze"):
            run = make_run(tmp_path / f"{label}{game}", game=game, held_out=7.0)
            named.setdefault(label, []).append(str(run))
            (path,) = run.glob("checkpoints/*.json")
            if game == "maze":
                path.write_text(
                    path.read_text().replace('"num_episodes": 500', '"num_episodes": 9')
                )
    assert incomparable(load_arms(named)) == []


@pytest.mark.parametrize("text", ["NaN", "Infinity"])
def test_figures_that_are_no_numbers(tmp_path, text):
    directory = make_run(tmp_path / "run")
    rows = directory / "logs/PPO_Sequential/metrics.jsonl"
    odd = f'{{"time/total_timesteps": 5, "time/elapsed_time": {text}, "time/fps_recent": "x"}}\n'
    rows.write_text(odd + f'{{"time/total_timesteps": {text}}}\n' + rows.read_text())
    arms = load_arms({"A": [str(directory)]})
    assert "nan" not in write_comparison(arms, tmp_path / "out/c.png")[0].lower()
    path = directory / "benchmark_metrics.json"
    path.write_text(path.read_text().replace("4000.0", text))
    with pytest.raises(ConfigError, match="is not valid JSON"):
        load_run(directory)


def test_labels_may_hold_what_matplotlib_reads(tmp_path):
    arms = make_arms(tmp_path, n=1)
    odd = [type(arm)(label, arm.runs) for arm, label in zip(arms, ("_a", "$x by $"), strict=True)]
    write_comparison(odd, tmp_path / "out/c.png")


def test_games_of_different_modes_are_not_aggregated(tmp_path):
    named = {
        label: [
            str(make_run(tmp_path / f"{label}{game}", game=game, config__env__distribution_mode=m))
            for game in ("heist", "miner")
        ]
        for label, m in (("A", "easy"), ("B", "memory"))
    }
    text, _ = write_comparison(load_arms(named), tmp_path / "out/c.png")
    assert text.startswith("NOT COMPARABLE: distribution mode differs")
    assert "no aggregate over games: distribution modes differ in procgen-heist-v0" in text


def test_bad_input_is_one_clear_line(tmp_path):
    good = make_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    corrupt, other = make_run(tmp_path / "corrupt"), make_run(tmp_path / "other", schema_version=7)
    lacking = make_run(tmp_path / "lacking")
    (corrupt / "benchmark_metrics.json").write_text('{"schema_version": 1,')
    (lacking / "benchmark_metrics.json").write_text('{"schema_version": 1}')
    cases = {
        str(tmp_path / "missing"): "there is no directory",
        str(tmp_path / "empty"): "has no benchmark_metrics.json",
        str(corrupt): "is not valid JSON",
        str(other): "has schema version 7; this rl_bench reads 1",
        str(lacking): "lacks algorithm",
        str(good) + "/": "is named twice (A and B)",
    }
    for directory, words in cases.items():
        with pytest.raises(ConfigError) as caught:
            load_arms({"A": [str(good)], "B": [directory]})
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="names no run"):
        load_arms({"A": []})


def test_other_games_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no game in common"):
        compare(make_arms(tmp_path, n=1, b={"game": "procgen-maze-v0"}))


def make_games(root, *, n=3):
    named = {}
    for label, factor in (("A", 1.0), ("B", 0.8)):
        for game, value in (("procgen-coinrun-v0", 9.0), ("starpilot", 30.0), ("bigfish", 20.0)):
            for seed in range(n):
                what = {"game": game, "seed": seed, "final": factor * value + 0.1 * seed}
                run = make_run(root / f"{label}-{game}-{seed}", held_out=what["final"], **what)
                named.setdefault(label, []).append(str(run))
    return named


def test_several_games_are_aggregated_over_normalised_scores(tmp_path):
    arms = load_arms(make_games(tmp_path))
    text, files = write_comparison(arms, tmp_path / "out/c.png")
    several = read_json(tmp_path / "out/comparison_report.json")["several_games"]
    assert several["normalised"]["A"]["procgen-coinrun-v0"] == pytest.approx([0.8, 0.82, 0.84])
    # Coinrun 9 of 5 to 10, starpilot 30 of 2.5 to 64, bigfish 20 of 1 to 40; 0.1 more on average.
    expected = np.mean([(9.1 - 5) / 5, (30.1 - 2.5) / 61.5, (20.1 - 1) / 39])
    assert several["aggregates"]["A"]["mean"]["value"] == pytest.approx(expected)
    assert several["improvement"][0]["value"] == 1.0
    assert text.index("All games") < text.index("procgen-bigfish-v0")
    assert {p.name for p in files} >= {"c.png", "c_games.png", "c_procgen-bigfish-v0_scores.png"}


def test_only_games_that_all_arms_have_are_compared(tmp_path):
    named = make_games(tmp_path)
    named["B"] = [d for d in named["B"] if "bigfish" not in d]
    document = compare(load_arms(named))
    assert "games differ: B has no run of procgen-bigfish-v0" in document["incomparable"][0]
    assert set(document["games"]) == {"procgen-coinrun-v0", "procgen-starpilot-v0"}


def test_games_without_a_range_are_not_aggregated(tmp_path):
    named = {
        label: [
            str(make_run(tmp_path / f"{label}{game}", game=game))
            for game in ("CartPole-v1", "Pendulum-v1")
        ]
        for label in "AB"
    }
    text, _ = write_comparison(load_arms(named), tmp_path / "out/c.png")
    assert "no aggregate over games: no published range of returns" in text


def test_time_to_a_threshold_is_censored(tmp_path):
    arms = make_arms(tmp_path, n=2, b={"final": 6.0})
    game = compare(arms, threshold=8.0)["games"]["procgen-coinrun-v0"]
    times = game["scores"]["time_to_threshold"]["arms"]
    assert times["B"]["missing"] == 2
    assert times["B"]["summary"] is None
    assert 0 < times["A"]["summary"]["mean"] < 10
    text = blocks.to_text(report(compare(arms, threshold=8.0), []))
    assert "time to a training return of 8 (min)" in text
    assert "not reached" in text


def test_curves_carry_forward_and_do_not_extrapolate():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 40.0])
    assert curves.carry_forward(x, y, np.array([1.0, 1.9, 2.0, 3.9, 4.0])).tolist() == [
        10.0, 10.0, 20.0, 20.0, 40.0,
    ]  # fmt: skip
    # 10 for one, 20 for two, 40 for one.
    assert curves.mean_over(x, y, 5.0) == pytest.approx((10 + 40 + 40) / 4)
    assert curves.first_reaching(x, y, 15.0) == 2.0
    assert curves.first_reaching(x, y, 50.0) is None


def test_a_curve_ends_with_its_shortest_run(tmp_path):
    runs = [load_run(make_run(tmp_path / str(m), seed=m, minutes=m)) for m in (5, 8, 10)]
    curve = curves.curve_of(runs, "time/elapsed_time", "rollout/ep_reward_mean", x_unit=60.0)
    assert curve.grid[-1] == pytest.approx(5.0)
    assert curve.band.shape == (2, curves.POINTS)
    assert (curve.band[0] < curve.mean).all()
    assert curves.curve_of(runs[:2], "time/elapsed_time", "time/fps_recent").band is None


def test_the_axis_follows_what_was_logged_and_not_its_interval():
    x, y = np.array([0.0, 1.0, 2.0]), np.array([4.0, 8.0, 9.0])
    axes = plots.plt.figure().add_subplot()
    plots._curve(axes, curves.Curve([(x, y)], x, y, np.array([y - 50.0, y + 50.0])), 0)
    assert axes.get_ylim()[1] > 50.0
    plots._fit_to_lines(axes)
    assert axes.get_ylim() == pytest.approx((3.75, 9.25))
    plots.plt.close("all")


def test_smoothing_keeps_lines_and_ends():
    line = np.linspace(0.0, 1.0, 400)
    assert curves.smooth(line) == pytest.approx(line)
    noise = np.random.default_rng(0).normal(size=400)
    assert curves.smooth(noise).std() < 0.4


def test_the_template_has_the_guides_lines_and_a_winner_per_row(tmp_path):
    arms = make_arms(tmp_path, n=5, a={"fps": 5000.0})
    text = template(compare(arms), arms)
    for words in ("BENCHMARK RESULTS - Test CPU", "Environment: procgen-coinrun-v0",
                  "Total Environments: 32", "Training Progress:", "COMPARISON",
                  "Evaluation Results, held-out (500 episodes each, stochastic):"):  # fmt: skip
        assert words in text
    rows = {line[:30].strip(): line for line in text.splitlines()}
    assert rows["Average FPS"].endswith("A (+25%)")
    assert rows["Held-out Reward"].endswith("A > B")
    assert rows["Memory Usage (GB)"].endswith("no clear winner")
    single = make_arms(tmp_path / "single", n=1, a={"fps": 5000.0})
    rows = {line[:30].strip(): line for line in template(compare(single), single).splitlines()}
    assert rows["Average FPS"].endswith("A (+25%), single runs")
    assert rows["Held-out Reward"].endswith("no verdict")


def test_finished_timed_runs_are_found(tmp_path):
    make_run(tmp_path / "x/one")
    make_run(tmp_path / "two", mode="parallel")
    make_run(tmp_path / "broken", status="interrupted")
    make_run(tmp_path / "steps", budget__kind="timesteps")
    found = find_arms(tmp_path)
    assert found == {
        "PPO parallel": [str(tmp_path / "two")], "PPO sequential": [str(tmp_path / "x/one")],
    }  # fmt: skip


def test_text_and_markdown_say_the_same():
    content = [
        blocks.Heading("Speed"), blocks.Lines(["a_b is *fast*"]),
        blocks.Table(["", "A"], [["FPS", "4,000"]]), blocks.Picture("my plot.png", "a plot"),
    ]  # fmt: skip
    text, markdown = blocks.to_text(content), blocks.to_markdown(content)
    assert "FPS  4,000" in text
    assert "- a\\_b is \\*fast\\*" in markdown
    assert "| FPS | 4,000 |" in markdown
    assert "![a plot](my%20plot.png)" in markdown


def test_the_area_ends_with_the_shortest_run(tmp_path):
    run = load_run(make_run(tmp_path / "run", final=9.0))
    short, long = scores.area_score(60.0).of(run), scores.area_score(600.0).of(run)
    assert 3.0 < short < long < 9.0
