"""Every setting of a run, as frozen dataclasses: the only list of keys there is.

Values are checked one by one and against each other in `__post_init__`. Reading YAML and overrides is `config_io.py`.
Counts of environment steps are summed over all tasks unless a name says `per_task`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

ENGINES = ("local", "rllib")
ALGORITHMS = ("mtsac", "mtppo", "mttrpo", "te_ppo", "maml_trpo", "maml_ppo", "rl2_ppo", "pearl")
MAML_ALGORITHMS = ("maml_trpo", "maml_ppo")
META_ALGORITHMS = (*MAML_ALGORITHMS, "rl2_ppo", "pearl")
"""Those that learn to adapt to tasks whose goals are hidden."""
GRAPH_ALGORITHMS = ("mtsac",)
ONE_HOT_ALGORITHMS = ("mtppo", "mttrpo", "te_ppo")
"""Those whose policy has one output layer for all tasks."""
INNER_LOSSES = ("log_prob", "ratio")
TRIAL_BASELINES = ("trial", "class", "all")
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
    test_tasks: tuple[str, ...] = ()
    """Test tasks of custom-ml; empty otherwise."""
    goal_visible: bool | None = None
    """Whether observations hold the goal; empty: as the benchmark has it, visible in MT, hidden in ML."""
    copies: int = 1
    """Environments per task that are stepped together; of MAML per sampled task, which share its `meta.episodes`."""
    backend: str = "auto"
    """What simulates: metaworld (its own classes), compiled (the same, faster), or auto (compiled where it can)."""
    num_threads: int | None = None
    """Threads that step environments of the compiled backend, and through which MAML's policies act; empty: one
    per worker on Ray, one with pin_threads, all cores otherwise."""
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
class MetaConfig:
    """Meta-training and meta-test, for algorithms that adapt. A sampled task is a task class with one of its goals."""

    batch_size: int = 20
    """Sampled tasks of an iteration: a multiple of the number of task classes, each class equally often."""
    episodes: int = 10
    """Episodes of each sampled task before an adaptation step (MAML), or in a trial (RL²)."""
    adaptation_episodes: int = 10
    """Episodes that a policy may adapt in at meta-test."""
    test_episodes: int = 3
    """Episodes per goal after adaptation, which count."""
    curve: tuple[int, ...] = ()
    """Numbers of adaptation episodes, below adaptation_episodes, after which evaluations also test."""
    allow_overlap: bool = False
    """Train on a benchmark whose test tasks are also trained on (ML25)."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "episodes", "adaptation_episodes", "test_episodes"):
            _at_least(f"meta.{key}", getattr(self, key), 1)
        if any(not 0 <= point < self.adaptation_episodes for point in self.curve):
            raise ConfigError(
                "meta.curve",
                f"{list(self.curve)} holds numbers outside [0, {self.adaptation_episodes - 1}]; "
                f"meta.adaptation_episodes={self.adaptation_episodes} is always tested",
            )


@dataclass(frozen=True)
class OnPolicyConfig:
    """What algorithms that learn from their newest episodes have in common."""

    episodes: int = 20
    """Episodes of each environment between two updates; meta-learning has its own, `meta.episodes`."""
    gamma: float = 0.99
    """Discount per environment step."""
    gae_lambda: float = 1.0
    """Lambda of generalized advantage estimation; 1: returns minus baseline."""
    normalize_advantages: bool = True
    """Centre advantages and divide them by their standard deviation, for each task by itself."""
    initial_std: float = 1.0
    """Standard deviation of actions at the start."""
    min_std: float = 1e-6
    """Lower limit of the standard deviation of actions."""

    def __post_init__(self) -> None:
        _at_least("on_policy.episodes", self.episodes, 1)
        _within("on_policy.gamma", self.gamma, 0.0, 1.0)
        _within("on_policy.gae_lambda", self.gae_lambda, 0.0, 1.0)
        _above_zero("on_policy.min_std", self.min_std)
        _at_least("on_policy.initial_std", self.initial_std, self.min_std)


@dataclass(frozen=True)
class TrpoConfig:
    """Trust region policy optimization."""

    max_kl: float = 0.01
    """Largest mean KL divergence of a step."""
    cg_iterations: int = 10
    """Iterations of conjugate gradient."""
    damping: float = 1e-5
    """Added to the diagonal of the Fisher matrix."""
    backtrack_ratio: float = 0.8
    """Factor on the step at each trial of the line search."""
    max_backtracks: int = 15
    """Trials of the line search after the first."""
    fisher_share: float = 1.0
    """Share of the states, evenly spaced, from which Fisher products are computed."""

    def __post_init__(self) -> None:
        _above_zero("trpo.max_kl", self.max_kl)
        _at_least("trpo.cg_iterations", self.cg_iterations, 1)
        _at_least("trpo.damping", self.damping, 0.0)
        _within("trpo.backtrack_ratio", self.backtrack_ratio, 0.01, 0.99)
        _at_least("trpo.max_backtracks", self.max_backtracks, 0)
        _within("trpo.fisher_share", self.fisher_share, 0.001, 1.0)


@dataclass(frozen=True)
class MamlConfig:
    """Model-agnostic meta-learning."""

    inner_lr: float = 0.1
    """Step size of adaptation; belongs to advantages of unit variance."""
    inner_steps: int = 1
    """Adaptation steps, each from fresh episodes."""
    inner_loss: str = "log_prob"
    """log_prob: log pi x advantage, as published; ratio: likelihood ratio x advantage, with credit to exploration."""
    first_order: bool = False
    """Leave out the derivative of the adaptation step."""
    tasks_per_chunk: int = 1
    """Sampled tasks whose graphs are in memory at once."""
    inner_kl_weight: float = 5e-4
    """maml_ppo: weight of the KL divergence from the policies that acted before each adaptation step (ProMP's eta)."""
    meta_regularization: float = 0.0
    """Learn a Gaussian over each common parameter, and add so much of its KL divergence from N(0, 1); 0: none."""
    initial_weight_std: float = 0.01
    """Standard deviation of these Gaussians at the start."""

    def __post_init__(self) -> None:
        _above_zero("maml.inner_lr", self.inner_lr)
        _at_least("maml.inner_steps", self.inner_steps, 1)
        _one_of("maml.inner_loss", self.inner_loss, INNER_LOSSES)
        _at_least("maml.inner_kl_weight", self.inner_kl_weight, 0.0)
        _at_least("maml.meta_regularization", self.meta_regularization, 0.0)
        _above_zero("maml.initial_weight_std", self.initial_weight_std)
        _at_least("maml.tasks_per_chunk", self.tasks_per_chunk, 1)


@dataclass(frozen=True)
class PpoConfig:
    """Proximal policy optimization."""

    lr: float = 3e-4
    """Adam learning rate."""
    anneal_lr: bool = False
    """Let the learning rate fall linearly, to 0 at total_env_steps."""
    clip: float = 0.2
    """Largest change of a likelihood ratio from 1 that the surrogate rewards."""
    epochs: int = 16
    """Passes over the episodes of an iteration."""
    minibatches: int = 32
    """Gradient steps of a pass, each from another share of the data."""
    entropy_coefficient: float = 5e-3
    """Weight of the policy's entropy in the loss."""
    max_grad_norm: float | None = 1.0
    """Global norm to which gradients are clipped; empty: no clipping."""
    target_kl: float | None = None
    """Mean KL divergence from the policy that acted after which an iteration makes no more passes; empty: none."""

    def __post_init__(self) -> None:
        _above_zero("ppo.lr", self.lr)
        _above_zero("ppo.clip", self.clip)
        _at_least("ppo.epochs", self.epochs, 1)
        _at_least("ppo.minibatches", self.minibatches, 1)
        _at_least("ppo.entropy_coefficient", self.entropy_coefficient, 0.0)
        if self.max_grad_norm is not None:
            _above_zero("ppo.max_grad_norm", self.max_grad_norm)
        if self.target_kl is not None:
            _above_zero("ppo.target_kl", self.target_kl)


@dataclass(frozen=True)
class Rl2Config:
    """RL²: a policy whose memory lasts through a trial."""

    hidden_size: int = 256
    """Width of the gated recurrent unit behind the layers of network.actor_widths."""
    max_std: float = 2.0
    """Upper limit of the standard deviation of actions, which may depend on what happened so far."""
    reward_scale: float = 0.1
    """Factor on the previous reward where it is an input; the rewards that are learned from stay raw."""
    baseline: str = "trial"
    """What shares a fit of the linear baseline: each trial by itself, trials of a task class, or all trials."""
    bptt_steps: int | None = None
    """Steps that gradients flow back through; empty: the whole trial."""

    def __post_init__(self) -> None:
        _at_least("rl2.hidden_size", self.hidden_size, 1)
        _above_zero("rl2.max_std", self.max_std)
        _above_zero("rl2.reward_scale", self.reward_scale)
        _one_of("rl2.baseline", self.baseline, TRIAL_BASELINES)
        if self.bptt_steps is not None:
            _at_least("rl2.bptt_steps", self.bptt_steps, 1)


@dataclass(frozen=True)
class PearlConfig:
    """Probabilistic embeddings for actor-critic RL. A slot is a sampled task: a task class with one of its goals.

    Of the `sac` settings it takes gamma, tau, batch_size (per slot), actor_lr, critic_lr (V too), adam_eps,
    max_grad_norm and reward_scale; with `learned_temperature` alpha_lr, initial_alpha and target_entropy too.
    """

    latent_dim: int = 5
    """Dimensions of the latent variable that stands for a task."""
    encoder_widths: tuple[int, ...] = (200, 200, 200)
    """Hidden widths of the encoder of single transitions."""
    encoder_lr: float = 3e-4
    """Adam learning rate of the encoder."""
    context_size: int = 64
    """Transitions from which an update infers each slot's latent variable, drawn apart from sac.batch_size."""
    context_reward_scale: float = 1.0
    """Factor on the rewards that the encoder sees."""
    contexts_kept: int = 1
    """How many of a slot's newest collections are kept as contexts; an update takes one of them. 1 as published, where
    the encoder's buffer is emptied at each collection."""
    next_obs_in_context: bool = False
    """Let the encoder see next observations too, for tasks that differ in their dynamics."""
    kl_weight: float = 0.1
    """Weight of the KL divergence from the prior, a sum over slots and latent dimensions."""
    meta_batch: int = 16
    """Slots of an update, drawn with replacement."""
    initial_steps: int = 2000
    """Steps of every slot before the first update; like the three below made up to whole episodes."""
    prior_steps: int = 400
    """Steps of each slot of an iteration with the latent variable from the prior; they become its context."""
    posterior_steps: int = 0
    """Steps after these with the latent variable from the posterior, which are added to the context."""
    extra_steps: int = 400
    """Steps after these from the posterior, which the encoder never sees."""
    updates_per_iteration: int = 2000
    """Updates after each collection from meta.batch_size slots."""
    prior_episodes: int = 1
    """Episodes at meta-test before the latent variable is drawn from a posterior."""
    mean_regularization: float = 1e-3
    """Weight of the policy's squared means in its loss."""
    log_std_regularization: float = 1e-3
    """Weight of the policy's squared log standard deviations."""
    pre_tanh_regularization: float = 0.0
    """Weight of the squared actions before the tanh, summed over action dimensions."""
    learned_temperature: bool = False
    """Twin target critics and a learned temperature in place of a value network: not PEARL as published."""

    def __post_init__(self) -> None:
        for key in ("latent_dim", "context_size", "contexts_kept", "meta_batch", "updates_per_iteration"):
            _at_least(f"pearl.{key}", getattr(self, key), 1)
        for key in ("initial_steps", "prior_steps", "prior_episodes"):
            _at_least(f"pearl.{key}", getattr(self, key), 1)
        for key in ("posterior_steps", "extra_steps", "kl_weight"):
            _at_least(f"pearl.{key}", getattr(self, key), 0)
        for key in ("mean_regularization", "log_std_regularization", "pre_tanh_regularization"):
            _at_least(f"pearl.{key}", getattr(self, key), 0)
        _above_zero("pearl.encoder_lr", self.encoder_lr)
        _above_zero("pearl.context_reward_scale", self.context_reward_scale)

    def context_steps(self, max_episode_steps: int) -> int:
        """Returns how many transitions a slot must hold so that no context is overwritten, in whole episodes."""
        phases = self.prior_steps, self.posterior_steps, self.extra_steps
        episodes = sum(whole_episodes(steps, max_episode_steps) for steps in phases)
        episodes = max(episodes, whole_episodes(self.initial_steps, max_episode_steps))
        return self.contexts_kept * episodes * max_episode_steps


def whole_episodes(steps: int, max_episode_steps: int) -> int:
    """Returns the number of whole episodes that hold so many steps."""
    return -(-steps // max_episode_steps)


@dataclass(frozen=True)
class TePpoConfig:
    """Task embeddings: policies that are told a point of a learned space in place of the task."""

    latent_dim: int = 4
    """Dimensions of the space of embeddings."""
    max_std: float = 0.2
    """Upper limit of the standard deviation of a task's embeddings, which begins at half of it."""
    encoder_entropy_coefficient: float = 2e-4
    """Weight of the entropy of a task's embeddings in the loss."""
    inference_coefficient: float = 5e-2
    """Weight in the reward of how well the embedding is inferred, its log-density cut off at [-3, 3]."""
    window: int = 6
    """Observations that the embedding is inferred from, the newest ones of the episode."""
    inference_widths: tuple[int, ...] = (20, 10)
    """Hidden widths of the network that infers."""
    inference_lr: float = 1e-3
    """Adam learning rate of the network that infers."""

    def __post_init__(self) -> None:
        for key in ("latent_dim", "window"):
            _at_least(f"te_ppo.{key}", getattr(self, key), 1)
        for key in ("encoder_entropy_coefficient", "inference_coefficient"):
            _at_least(f"te_ppo.{key}", getattr(self, key), 0.0)
        _above_zero("te_ppo.max_std", self.max_std)
        _above_zero("te_ppo.inference_lr", self.inference_lr)
        if not self.inference_widths:
            raise ConfigError("te_ppo.inference_widths", "is empty; give at least one hidden width, as in [20, 10]")
        for width in self.inference_widths:
            _at_least("te_ppo.inference_widths", width, 1)


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
class LearnerConfig:
    """How updates are executed."""

    compile: str = "eager"
    """eager: operation by operation; graph: the same as CUDA graphs, for mtsac with networks and replay on a GPU."""
    updates_per_graph: int = 8
    """Updates of the largest graph; it is taken while so many are due, one of a single update otherwise."""
    tf32: bool = False
    """Matrix products of a GPU with inputs rounded to 10 bits; inner products of gradients stay exact."""

    def __post_init__(self) -> None:
        _one_of("learner.compile", self.compile, ("eager", "graph"))
        _at_least("learner.updates_per_graph", self.updates_per_graph, 1)


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
    deterministic: bool = True
    """Act with mean actions in the episodes that count; false: with samples, as in training. Say which."""
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
    pin_threads: bool = False
    """With collection=async and engine=local: simulation threads and the learner keep to cores of their own."""
    device: str = "auto"
    """Where networks live: auto (cuda if there is one), cpu or cuda."""
    torch_threads: int | None = None
    """Threads of torch in the learner; empty: torch's own choice, with pin_threads its cores. Recorded with the run."""
    total_env_steps: int = 20_000_000
    """Environment steps to train for, all tasks together."""
    log_every_env_steps: int = 10_000
    """Environment steps between two records in the log."""
    profile: bool = False
    """Record a trace of a second of training into the run directory's folder `profile`; changes no number."""
    runs_dir: str = "runs"
    """Folder in which run directories are made."""
    init_from: str | None = None
    """Run directory whose network weights this run starts from; empty: fresh weights."""
    algorithm: str = "mtsac"
    """Learning algorithm (`mtrl list algorithms`)."""
    env: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    sac: SacConfig = field(default_factory=SacConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    trpo: TrpoConfig = field(default_factory=TrpoConfig)
    maml: MamlConfig = field(default_factory=MamlConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    te_ppo: TePpoConfig = field(default_factory=TePpoConfig)
    rl2: Rl2Config = field(default_factory=Rl2Config)
    pearl: PearlConfig = field(default_factory=PearlConfig)
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
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
        if self.algorithm in ONE_HOT_ALGORITHMS and self.network.architecture != "one_hot":
            raise ConfigError(
                "network.architecture",
                f"{self.network.architecture} is not what {self.algorithm} has, one output layer for all tasks; "
                "set network.architecture=one_hot",
            )
        _at_least("seed", self.seed, 0)
        _at_least("total_env_steps", self.total_env_steps, 1)
        _at_least("log_every_env_steps", self.log_every_env_steps, 1)
        if self.learner.compile == "graph" and self.algorithm not in GRAPH_ALGORITHMS:
            raise ConfigError("learner.compile", f"graph is not built for {self.algorithm}; take eager")
        if self.learner.compile == "graph" and self.device != "cpu" and self.replay.device == "cpu":
            raise ConfigError("replay.device", "cpu leaves the replay where no graph can reach it; take auto")
        if self.torch_threads is not None:
            _at_least("torch_threads", self.torch_threads, 1)
        if (self.engine, self.collection, self.rllib.num_env_runners) == ("rllib", "async", 0):
            raise ConfigError(
                "collection", "async needs workers beside the driver; set rllib.num_env_runners, or engine=local"
            )
        if self.pin_threads and (self.engine, self.collection) != ("local", "async"):
            raise ConfigError(
                "pin_threads",
                f"is for collection=async with engine=local, not for collection={self.collection} with "
                f"engine={self.engine}; set it to false",
            )
        if self.replay.capacity_per_task < self.sac.batch_size:
            raise ConfigError(
                "replay.capacity_per_task",
                f"{self.replay.capacity_per_task} is below sac.batch_size={self.sac.batch_size}; no batch would fit",
            )
        for key, goals in (("eval.goals", self.eval.goals), ("eval.final_goals", self.eval.final_goals)):
            if goals > self.env.num_goals:
                raise ConfigError(key, f"asks for {goals} goals per task, env.num_goals stores {self.env.num_goals}")
        if self.algorithm in META_ALGORITHMS:
            self._check_copies()
        if self.algorithm == "rl2_ppo":
            self._check_rl2()
        if self.algorithm == "pearl":
            self._check_pearl()

    def smallest_capacity(self) -> int:
        """Returns the least `replay.capacity_per_task` that this run could have."""
        of_context = self.pearl.context_steps(self.env.max_episode_steps) if self.algorithm == "pearl" else 0
        return max(of_context, self.sac.batch_size)

    def simulation_threads(self) -> int:
        """Returns how many threads step a process's environments: `env.num_threads`, or what it means if empty."""
        if self.env.num_threads is not None:
            return self.env.num_threads
        if self.engine == "rllib" or self.pin_threads:
            return 1
        # not every system can say which cores a process may use
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _check_copies(self) -> None:
        copies, episodes = self.env.copies, self.meta.episodes
        if self.algorithm not in MAML_ALGORITHMS and copies > 1:
            raise ConfigError("env.copies", f"{self.algorithm} has one environment for each sampled task; take 1")
        if episodes % copies:
            raise ConfigError(
                "env.copies",
                f"{copies} environments of a sampled task cannot share its meta.episodes={episodes} evenly",
            )

    def _check_pearl(self) -> None:
        if self.replay.capacity_per_task < self.smallest_capacity():
            raise ConfigError(
                "replay.capacity_per_task",
                f"{self.pearl.contexts_kept} of pearl's collections bring a slot up to {self.smallest_capacity()} "
                f"transitions, and its context would be larger than its buffer of {self.replay.capacity_per_task}; "
                f"take at least {self.smallest_capacity()}, or lower pearl.contexts_kept or the steps that pearl "
                "collects",
            )
        if self.sac.reward_scaling == "per_task_return":
            raise ConfigError(
                "sac.reward_scaling", "pearl has one scale for all tasks, its temperature; take constant or none"
            )
        if self.surgery != SurgeryConfig():
            raise ConfigError("surgery.method", "pearl has one loss for all sampled tasks together; take mean")

    def _check_rl2(self) -> None:
        low, begin, high = self.on_policy.min_std, self.on_policy.initial_std, self.rl2.max_std
        if not low < begin < high:
            raise ConfigError("on_policy.initial_std", f"{begin} is not between min_std={low} and rl2.max_std={high}")
        if self.ppo.minibatches > self.meta.batch_size:
            raise ConfigError(
                "ppo.minibatches",
                f"{self.ppo.minibatches} shares of whole trials need as many trials; meta.batch_size is "
                f"{self.meta.batch_size}",
            )
        if self.surgery.method != "mean":
            raise ConfigError("surgery.method", f"{self.surgery.method} is not built for rl2_ppo; take mean")
