"""Every setting of a run, as frozen dataclasses: the only list of keys there is.

Values are checked one by one and against each other in `__post_init__`. Reading YAML and overrides is `config_io.py`.
Counts of environment steps are summed over all tasks unless a name says `per_task`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ENGINES = ("local", "rllib")
ALGORITHMS = ("mtsac",)
ARCHITECTURES = ("one_hot", "multi_head")
ACTIVATIONS = ("relu", "tanh", "elu", "silu", "gelu")
REWARD_SCALINGS = ("none", "constant", "per_task_return")
SURGERY_METHODS = ("mean", "pcgrad", "direction_only", "magnitude_only")
REDUCTIONS = ("mean", "sum")
BACKENDS = ("metaworld", "compiled", "auto")
REWARD_VERSIONS = ("v1", "v2")
DEVICES = ("auto", "cpu", "cuda")


class ConfigError(ValueError):
    """A setting that cannot be used; `key` is its full dotted name, the text says what is wrong and what is right."""

    def __init__(self, key: str, problem: str) -> None:
        self.key = key
        self.problem = problem
        super().__init__(f"{key}: {problem}")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(key, f"{value!r} is not one of {', '.join(known)}")


def _at_least(key: str, value: float, low: float) -> None:
    if not value >= low:
        raise ConfigError(key, f"{value} is too small; it must be at least {low}")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(key, f"{value} is outside [{low}, {high}]")


def _above_zero(key: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(key, f"{value} must be above 0")


@dataclass(frozen=True)
class EnvConfig:
    """Benchmark, tasks and goals."""

    benchmark: str = "MT10"
    """MT1, MT10, MT25, MT50, ML1, ML10, ML25, ML45, custom, or toy (`mtrl list benchmarks`)."""
    tasks: tuple[str, ...] = ()
    """Task names: exactly one for MT1 and ML1, any number for custom, empty otherwise."""
    copies: int = 1
    """Environments per task that are stepped together."""
    backend: str = "auto"
    """What simulates: metaworld (its own classes), compiled (the same, faster), or auto (compiled where it can)."""
    num_threads: int | None = None
    """Threads of the compiled backend; empty: one per worker on Ray, all cores otherwise."""
    reward_version: str = "v2"
    """Meta-World's reward functions: v2 (0 to 10 a step) or v1."""
    max_episode_steps: int = 500
    """Time limit of an episode; reaching it truncates and does not terminate. Meta-World allows at most 500."""
    num_goals: int = 50
    """Stored goals per task."""
    goal_seed: int | None = None
    """Seed of the stored goals; the run's seed if empty."""

    def __post_init__(self) -> None:
        _at_least("env.copies", self.copies, 1)
        _within("env.max_episode_steps", self.max_episode_steps, 1, 500)
        _at_least("env.num_goals", self.num_goals, 1)
        if self.num_threads is not None:
            _at_least("env.num_threads", self.num_threads, 1)
        _one_of("env.backend", self.backend, BACKENDS)
        _one_of("env.reward_version", self.reward_version, REWARD_VERSIONS)


@dataclass(frozen=True)
class NetworkConfig:
    """Shapes of actor and critics."""

    architecture: str = "multi_head"
    """one_hot: one output layer for all tasks (MTSAC); multi_head: an output layer per task (MTMHSAC)."""
    actor_widths: tuple[int, ...] = (400, 400, 400)
    """Hidden widths of the actor's trunk."""
    critic_widths: tuple[int, ...] = (400, 400, 400)
    """Hidden widths of each critic's trunk."""
    activation: str = "relu"
    """Activation after each hidden layer: relu, tanh, elu, silu or gelu."""
    actor_layer_norm: bool = False
    """Normalise each hidden layer of the actor before its activation (no learned scale and shift)."""
    critic_layer_norm: bool = False
    """The same in the critics."""

    def __post_init__(self) -> None:
        _one_of("network.architecture", self.architecture, ARCHITECTURES)
        _one_of("network.activation", self.activation, ACTIVATIONS)
        for key, widths in (("actor_widths", self.actor_widths), ("critic_widths", self.critic_widths)):
            if not widths:
                raise ConfigError(f"network.{key}", "is empty; give at least one hidden width, as in [400, 400, 400]")
            for width in widths:
                _at_least(f"network.{key}", width, 1)


@dataclass(frozen=True)
class SacConfig:
    """Soft actor-critic."""

    gamma: float = 0.99
    """Discount per environment step."""
    tau: float = 0.005
    """Step of the target critics towards the critics at each update."""
    batch_size: int = 128
    """Transitions per task in each update."""
    samples_per_insert: float = 128.0
    """Transitions learned from per transition collected: batch_size x num_tasks x updates / env_steps after warm-up."""
    warmup_steps_per_task: int = 4000
    """Environment steps per task with uniformly random actions before the first update."""
    collect_steps: int = 1
    """Vector steps between two rounds of updates; each environment makes this many steps with the same weights."""
    actor_lr: float = 3e-4
    """Adam learning rate of the actor."""
    critic_lr: float = 3e-4
    """Adam learning rate of the critics."""
    alpha_lr: float = 3e-4
    """Adam learning rate of the log temperatures."""
    adam_eps: float = 1e-5
    """Adam's epsilon for actor and critics (the temperature keeps 1e-8)."""
    max_grad_norm: float | None = 1.0
    """Global norm to which the actor's and the critics' gradients are clipped; empty: no clipping."""
    initial_alpha: float = 1.0
    """Temperature of each task at the start."""
    target_entropy: float | None = None
    """Entropy that the temperature is driven to; minus the number of action dimensions if empty."""
    reward_scaling: str = "none"
    """none; constant (x reward_scale); per_task_return (x reward_scale / largest discounted return of the task)."""
    reward_scale: float = 1.0
    """See reward_scaling."""

    def __post_init__(self) -> None:
        _within("sac.gamma", self.gamma, 0.0, 1.0)
        _within("sac.tau", self.tau, 0.0, 1.0)
        _at_least("sac.batch_size", self.batch_size, 1)
        _above_zero("sac.samples_per_insert", self.samples_per_insert)
        _at_least("sac.warmup_steps_per_task", self.warmup_steps_per_task, 1)
        _at_least("sac.collect_steps", self.collect_steps, 1)
        for key in ("actor_lr", "critic_lr", "alpha_lr", "adam_eps", "initial_alpha", "reward_scale"):
            _above_zero(f"sac.{key}", getattr(self, key))
        if self.max_grad_norm is not None:
            _above_zero("sac.max_grad_norm", self.max_grad_norm)
        _one_of("sac.reward_scaling", self.reward_scaling, REWARD_SCALINGS)
        if self.reward_scaling == "none" and self.reward_scale != 1.0:
            raise ConfigError(
                "sac.reward_scale", "has no effect with sac.reward_scaling=none; set reward_scaling=constant"
            )


@dataclass(frozen=True)
class SurgeryConfig:
    """What is done with the gradients of different tasks."""

    method: str = "mean"
    """mean (plain training), pcgrad, direction_only or magnitude_only (the paper's ablations of PCGrad)."""
    reduction: str = "mean"
    """mean: equal to plain training where nothing conflicts; sum: as printed in the PCGrad paper."""
    statistics_every: int = 0
    """Updates between two measurements of gradient conflict (cosines, magnitude similarity, curvature); 0: never."""

    def __post_init__(self) -> None:
        _one_of("surgery.method", self.method, SURGERY_METHODS)
        _one_of("surgery.reduction", self.reduction, REDUCTIONS)
        _at_least("surgery.statistics_every", self.statistics_every, 0)


@dataclass(frozen=True)
class ReplayConfig:
    """Replay of transitions."""

    capacity_per_task: int = 100_000
    """Transitions kept per task; the oldest is overwritten."""
    device: str = "cpu"
    """Where the replay lives: cpu, cuda, or auto for the learner's device."""

    def __post_init__(self) -> None:
        _at_least("replay.capacity_per_task", self.capacity_per_task, 1)
        _one_of("replay.device", self.device, DEVICES)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluations on environments of their own."""

    every_env_steps: int = 200_000
    """Environment steps between two evaluations during training; 0: only at the end."""
    goals: int = 10
    """Goals per task in evaluations during training: the first ones of the stored goals, each once."""
    final_goals: int = 50
    """Goals per task in the evaluation at the end."""
    copies: int = 1
    """Environments per task that evaluation steps together."""
    parallel: bool = False
    """Evaluate during training beside it, in a thread or on `rllib.num_evaluators` workers, not in its place."""
    stop_at_success: bool = False
    """End an episode at its first success: the same success, several times faster, but returns are cut short."""

    def __post_init__(self) -> None:
        _at_least("eval.every_env_steps", self.every_env_steps, 0)
        _at_least("eval.goals", self.goals, 1)
        _at_least("eval.final_goals", self.final_goals, 1)
        _at_least("eval.copies", self.copies, 1)


@dataclass(frozen=True)
class CheckpointConfig:
    """Saved states of a run."""

    every_env_steps: int = 1_000_000
    """Environment steps between two checkpoints; 0: only at the end and when stopped by a signal."""
    keep: int = 2
    """Checkpoints kept; older ones are removed."""
    replay: bool = True
    """Save the replay too, so that a resumed run goes on with its data."""

    def __post_init__(self) -> None:
        _at_least("checkpoint.every_env_steps", self.every_env_steps, 0)
        _at_least("checkpoint.keep", self.keep, 1)


@dataclass(frozen=True)
class RllibConfig:
    """Rollout workers on Ray, for engine=rllib."""

    address: str | None = None
    """Address of a running Ray cluster; empty: start Ray on this machine for the run."""
    num_env_runners: int = 2
    """Remote rollout workers; 0: collect in the driver."""
    num_cpus_per_env_runner: float = 1.0
    """Cores reserved for each rollout worker."""
    num_evaluators: int = 1
    """Remote workers that evaluate beside training, with eval.parallel."""
    object_store_bytes: int = 300_000_000
    """Shared memory of a Ray that is started for the run."""
    worker_timeout_s: float = 1800.0
    """Seconds that a worker may take for one request or evaluation before it counts as hung and is replaced."""

    def __post_init__(self) -> None:
        _at_least("rllib.num_env_runners", self.num_env_runners, 0)
        _at_least("rllib.num_evaluators", self.num_evaluators, 1)
        _at_least("rllib.num_cpus_per_env_runner", self.num_cpus_per_env_runner, 0)
        _at_least("rllib.object_store_bytes", self.object_store_bytes, 80_000_000)
        _at_least("rllib.worker_timeout_s", self.worker_timeout_s, 1)


@dataclass(frozen=True)
class ExpectedConfig:
    """What a published row claims; only reported beside the measured number."""

    success_rate: float | None = None
    """Mean success over tasks, 0 to 1."""
    env_steps: int | None = None
    """Environment steps the claim was made at."""
    seeds: int | None = None
    """Number of seeds of the claim."""
    source: str = ""
    """Paper and table or figure of the claim."""


@dataclass(frozen=True)
class RunConfig:
    """One run."""

    name: str = "run"
    """Name of the row; part of the run directory's name."""
    seed: int = 1
    """Seed that every random stream of the run is derived from."""
    engine: str = "local"
    """local: one process; rllib: rollout workers on Ray."""
    collection: str = "sync"
    """sync: collecting and learning take turns; async: they overlap, and weights that act are a little old."""
    requests_in_flight: int = 2
    """Requests that each worker has at once with collection=async."""
    steps_per_request: int = 32
    """Least steps of each environment in a request with collection=async, as a request costs milliseconds."""
    device: str = "auto"
    """Where networks live: auto (cuda if there is one), cpu or cuda."""
    torch_threads: int | None = None
    """Threads of torch in the learner; empty: torch's own choice. Recorded with the run."""
    total_env_steps: int = 20_000_000
    """Environment steps to train for, all tasks together."""
    log_every_env_steps: int = 10_000
    """Environment steps between two records in the log."""
    runs_dir: str = "runs"
    """Folder in which run directories are made."""
    init_from: str | None = None
    """Run directory whose network weights this run starts from; empty: fresh weights."""
    algorithm: str = "mtsac"
    """Learning algorithm (`mtrl list algorithms`)."""
    env: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    sac: SacConfig = field(default_factory=SacConfig)
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    rllib: RllibConfig = field(default_factory=RllibConfig)
    expected: ExpectedConfig = field(default_factory=ExpectedConfig)

    def __post_init__(self) -> None:
        _one_of("engine", self.engine, ENGINES)
        _one_of("collection", self.collection, ("sync", "async"))
        _at_least("requests_in_flight", self.requests_in_flight, 1)
        _at_least("steps_per_request", self.steps_per_request, 1)
        _one_of("device", self.device, DEVICES)
        _one_of("algorithm", self.algorithm, ALGORITHMS)
        _at_least("seed", self.seed, 0)
        _at_least("total_env_steps", self.total_env_steps, 1)
        _at_least("log_every_env_steps", self.log_every_env_steps, 1)
        if self.torch_threads is not None:
            _at_least("torch_threads", self.torch_threads, 1)
        if (self.engine, self.collection, self.rllib.num_env_runners) == ("rllib", "async", 0):
            raise ConfigError(
                "collection", "async needs workers beside the driver; set rllib.num_env_runners, or engine=local"
            )
        if self.replay.capacity_per_task < self.sac.batch_size:
            raise ConfigError(
                "replay.capacity_per_task",
                f"{self.replay.capacity_per_task} is below sac.batch_size={self.sac.batch_size}; no batch would fit",
            )
        for key, goals in (("eval.goals", self.eval.goals), ("eval.final_goals", self.eval.final_goals)):
            if goals > self.env.num_goals:
                raise ConfigError(key, f"asks for {goals} goals per task, env.num_goals stores {self.env.num_goals}")
