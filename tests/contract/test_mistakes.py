"""A user's mistake: exit code 2, one line on stderr, nothing left behind."""

import pytest

from tests.conftest import SMALL
from tests.synthetic import make_run

SCRIPT = "train_ppo_sequential.py"
MISTAKES = {
    "unknown flag": (["--num-env", "3"], "did you mean --num-envs?"),
    "unknown setting": (["--set", "training.gama=0.9"], "did you mean 'training.gamma'?"),
    "set without value": (["--set", "training.gamma"], "expected section.key=value"),
    "unknown game": (["--env", "procgen-coinrum-v0"], "procgen-coinrun-v0"),
    "unknown id": (["--env", "NoSuchThing-v3"], "neither a Procgen game nor a Gymnasium id"),
    "spaces without a network": (["--env", "FrozenLake-v1"], "Box is supported"),
    "unsupported mode": (["--distribution-mode", "extreme"], "it has easy, hard"),
    "level too high": (["--start-level", "2147483647"], "above the highest"),
    "negative level": (["--num-levels", "-1"], "the least is 0"),
    "wrong type": (["--num-envs", "many"], "expected a whole number"),
    "zero": (["--num-envs", "0"], "the least is 1"),
    "negative": (["--learning-rate", "-1"], "must be above 0"),
    "indivisible batch": (["--batch-size", "1000"], "does not divide the rollout of 4096"),
    "missing file": (["--config", "missing.yaml"], "cannot read 'missing.yaml'"),
    "missing checkpoint": (["--resume", "missing.pt"], "cannot read checkpoint 'missing.pt'"),
    "other device": (["--device", "cuda"], "not one of cpu"),
    "both": (["--resume", "--overwrite"], "not allowed with"),
    "value missing": (["--seed"], "expected one argument"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(case, script):
    args, message = MISTAKES[case]
    done = script(SCRIPT, *args)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert done.stdout == ""
    assert list(script.directory.iterdir()) == [], "nothing was made"


PARALLEL_MISTAKES = {
    "no workers": (["--num-workers", "0"], "the least is 1"),
    "total and parts": (
        ["--num-envs", "64", "--num-workers", "4", "--num-envs-per-worker", "8"],
        "64 environments in all are not 4 workers × 8 environments",
    ),
    "two names": (["--num-workers", "2", "--num-actors", "3"], "different values (2 and 3)"),
    "old weights": (["--set", "parallel.policy_update_frequency=2"], "PPO needs 1"),
    "old data": (["--set", "parallel.max_policy_lag=2"], "PPO needs 0"),
    "shares on one thread": (
        ["--num-threads", "1", "--set", "parallel.gradient=sharded"],
        "'sharded' needs two threads",
    ),
    "endless patience": (["--set", "parallel.silence_limit_seconds=1e9"], "the most is 86400"),
    "indivisible batch": (
        ["--num-envs", "30", "--batch-size", "1024"],
        "1024 does not divide the rollout of 3840 timesteps (128 steps × 30 environments); the "
        "nearest that does: --batch-size 960",
    ),
    "unknown game": (["--env", "procgen-coinrum-v0"], "procgen-coinrun-v0"),
}


IMPALA_MISTAKES = {
    "seldom published": (
        ["--set", "parallel.policy_update_frequency=9", "--set", "parallel.max_policy_lag=4"],
        "parallel.policy_update_frequency: 9 leaves workers with older weights than can be "
        "learned from; raise max_policy_lag from 4",
    ),
    "indivisible batch": (
        ["--batch-size", "1000"],
        "1000 does not divide the rollout of 4096 timesteps (128 steps × 32 environments); the "
        "nearest that does: --batch-size 1024",
    ),
    "clips": (
        ["--set", "impala.vtrace_clip_c_threshold=2"],
        "2 is above vtrace_clip_rho_threshold",
    ),
    "unrolls": (
        ["--set", "impala.unroll_length=20"],
        "20 does not divide both the 128 steps of a rollout and the minibatch of 256; "
        "--set impala.unroll_length=16 does",
    ),
    "epochs": (["--n-epochs", "4"], "unknown argument '--n-epochs'"),
}


@pytest.mark.parametrize(
    ("entry", "mistake"),
    [("train_ppo_parallel.py", mistake) for mistake in PARALLEL_MISTAKES.values()]
    + [("train_impala_parallel.py", mistake) for mistake in IMPALA_MISTAKES.values()],
)
def test_mistake_with_workers(entry, mistake, script):
    args, message = mistake
    done = script(entry, *args)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(script.directory.iterdir()) == [], "nothing was made"


def test_wrong_yaml_names_the_file_and_the_key(script):
    (script.directory / "my.yaml").write_text("training:\n  batchsize: 3\n")
    done = script(SCRIPT, "--config", "my.yaml")
    assert done.returncode == 2
    assert "my.yaml: unknown setting 'training.batchsize'; did you mean" in done.stderr


def test_an_earlier_run_is_kept_unless_asked(script):
    args = (SCRIPT, "--env", "toy-counting", "--total-timesteps", "128", "--output-dir", "out")
    assert script(*args, *SMALL).returncode == 0
    before = (script.directory / "out/benchmark_metrics.json").read_bytes()
    again = script(*args, *SMALL)
    assert again.returncode == 2
    assert "'out' holds an earlier run; --resume auto continues it" in again.stderr
    assert (script.directory / "out/benchmark_metrics.json").read_bytes() == before
    over = script(*args, *SMALL, "--overwrite", "--seed", "7")
    assert over.returncode == 0, over.stderr
    assert len(list((script.directory / "out").rglob("events.*"))) == 1


def test_resume_of_another_run_lists_the_differences(script):
    args = (SCRIPT, "--env", "toy-counting", "--total-timesteps", "128", "--output-dir", "out")
    assert script(*args, *SMALL).returncode == 0
    done = script(
        SCRIPT, "--resume", "--output-dir", "out", "--env", "toy-identity", "--num-envs", "8",
        "--encoder", "impala",
    )  # fmt: skip
    assert done.returncode == 2
    for text in ("env.name: checkpoint toy-counting, asked for toy-identity", "model.encoder",
                 "training.num_envs: checkpoint 4, asked for 8"):  # fmt: skip
        assert text in done.stderr


def test_resume_of_a_timed_run_needs_its_name(script):
    done = script("train_timed.py", "--resume")
    assert done.returncode == 2
    assert "--output-dir" in done.stderr


@pytest.mark.parametrize(
    "name",
    ["train_ppo_sequential.py", "train_timed.py", "train_ppo_parallel.py",
     "train_parallel_timed.py"],
)  # fmt: skip
def test_help_explains_every_flag(name, script):
    done = script(name, "--help")
    assert done.returncode == 0
    for flag in ("--config", "--num-envs", "--batch-size", "--resume", "--set"):
        assert flag in done.stdout
    assert ("--duration HOURS" in done.stdout) == ("timed" in name)
    assert ("--num-envs-per-actor N" in done.stdout) == ("parallel" in name)


EVALUATION_MISTAKES = {
    "missing": (["--checkpoint", "missing.pt"], "cannot read checkpoint 'missing.pt'"),
    "nothing there": (
        [],
        "no final checkpoint under checkpoints or benchmarks/; `make train-timed",
    ),
    "none of impala": (["--algorithm", "impala"], "no final impala checkpoint"),
    "empty directory": (["--checkpoint", "."], "there is no checkpoint in '.'"),
    "algorithm": (["--algorithm", "dqn"], "invalid choice: 'dqn'"),
    "episodes": (["--num-episodes", "0"], "--num-episodes: 0 is too small"),
    "seed": (["--seed", "-1"], "--seed: -1 is not between"),
    "unknown flag": (["--num-episode", "3"], "did you mean --num-episodes?"),
}


@pytest.mark.parametrize("case", EVALUATION_MISTAKES)
def test_mistakes_of_evaluation(case, script):
    args, message = EVALUATION_MISTAKES[case]
    expect_one_line(script("evaluate_universal.py", *args), message)
    assert list(script.directory.iterdir()) == []


def expect_one_line(done, message):
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert done.stdout == ""


COMPARISON_MISTAKES = {
    "nothing there": ([], "no finished timed run under benchmarks/"),
    "missing": (["--runs", "A=nowhere", "B=good"], "there is no directory 'nowhere'"),
    "no metrics": (
        ["--sequential", "good", "--parallel", "empty"],
        "has no benchmark_metrics.json",
    ),
    "corrupt": (["--runs", "A=good", "B=corrupt"], "is not valid JSON"),
    "schema": (["--runs", "A=good", "B=future"], "has schema version 99"),
    "null inside": (["--runs", "A=good", "B=hollow"], "has performance.num_episodes = None"),
    "config": (["--config", "missing.yaml"], "cannot read 'missing.yaml'"),
    "twice": (["--sequential", "good", "--parallel", "./good"], "is named twice"),
    "games": (["--runs", "A=good", "B=maze"], "no game in common (A: procgen-coinrun-v0; B: pro"),
    "form": (["--runs", "good"], "expected LABEL=DIR[,DIR…], got 'good'"),
    "label": (["--runs", "A=good", "A=maze"], "the label 'A' is there twice"),
    "picture": (["--runs", "A=good", "--output", "x.doc"], "must end in .png, .pdf, .svg"),
}


@pytest.mark.parametrize("case", COMPARISON_MISTAKES)
def test_mistakes_of_comparison(case, script):
    args, message = COMPARISON_MISTAKES[case]
    root = script.directory
    make_run(root / "good")
    make_run(root / "maze", game="maze")
    make_run(root / "future", schema_version=99)
    (make_run(root / "corrupt") / "benchmark_metrics.json").write_text('{"schema_version":')
    make_run(root / "hollow", performance__num_episodes=None)
    (root / "empty").mkdir()
    before = sorted(root.iterdir())
    expect_one_line(script("compare_results.py", *args), message)
    assert sorted(root.iterdir()) == before


BENCHMARK_MISTAKES = {
    "arm": (["--arms", "ppo"], "invalid choice: 'ppo' (choose from"),
    "seed": (["--seeds", "x"], "expected a whole number, got 'x'"),
    "seed twice": (["--seeds", "1", "1"], "--seeds: one is named twice (1, 1)"),
    "game": (["--games", "coinrum"], "neither a Procgen game nor a Gymnasium id"),
    "game twice": (["--games", "maze", "procgen-maze-v0"], "--games: one is named twice"),
    "mode": (["--set", "env.distribution_mode=extreme"], "coinrun has no mode 'extreme'"),
    "duration": (["--duration", "0"], "must be above 0"),
    "episodes": (["--num-episodes", "0"], "--num-episodes: 0 is too small"),
    "setting": (["--set", "training.gama=1"], "did you mean 'training.gamma'?"),
    "own flag": (["--set", "env.seed=1"], "the benchmark chooses this itself"),
    "file": (["--config", "missing.yaml"], "cannot read 'missing.yaml'"),
    "key": (["--config", "wrong.yaml"], "unknown setting 'seed'; did you mean --seeds?"),
}


@pytest.mark.parametrize("case", BENCHMARK_MISTAKES)
def test_mistakes_of_the_benchmark(case, script):
    args, message = BENCHMARK_MISTAKES[case]
    (script.directory / "wrong.yaml").write_text("seed: [1]\n")
    expect_one_line(script("run_benchmark.py", *args), message)
    assert [path.name for path in script.directory.iterdir()] == ["wrong.yaml"]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("evaluate_universal.py", ("--checkpoint", "--num-episodes", "--deterministic", "--video")),
        ("evaluate.py", ("--algorithm", "--seed", "--start-level")),
        ("compare_results.py", ("--sequential", "--parallel", "--runs", "--output")),
        ("run_benchmark.py", ("--arms", "--seeds", "--games", "--duration", "--config")),
    ],
)
def test_help_of_the_other_scripts(name, flags, script):
    done = script(name, "--help")
    assert done.returncode == 0
    for flag in flags:
        assert flag in done.stdout


@pytest.mark.parametrize("entry", ["train_ppo_sequential.py", "train_ppo_parallel.py"])
def test_a_damaged_procgen_is_one_line(entry, script):
    # Breaks when: what loads its images early lets the failure of its import through.
    package = script.directory / "damaged" / "procgen"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no such libenv')\n")
    script.env["PYTHONPATH"] = f"{package.parent}:{script.env['PYTHONPATH']}"
    run = script(entry, "--env", "coinrun", "--output-dir", "out")
    assert run.returncode == 1
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), run.stderr
    assert "no such libenv" in lines[0]
