"""A user's mistake: exit code 2, one line on stderr, nothing left behind."""

import pytest

from tests.conftest import SMALL

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
    "indivisible batch": (["--num-envs", "30"], "does not divide the rollout of 3840"),
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
