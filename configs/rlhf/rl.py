r"""Reinforcement learning of language models, with or without Elastic Reset.

    python -m launch.train --config configs/rlhf/rl.py:small_imdb_elastic --config.sources.init=runs/rlhf/sft \
        --config.sources.reward=runs/rlhf/judge --workdir runs/rlhf/elastic

batch = prompts (with sample.each responses each), step = a phase: a batch of rollouts and all updates on it

Variants <task>_<arm>; those of 2 cores have 1 M parameters
    imdb_{ppo,nlpo,elastic,ema,init}   GPT-2 on IMDB against distilbert-imdb (Noukhovitch et al. 2023; accelerator); not run
    qa_{ppo,elastic}                   LLaMA-7B with LoRA on StackExchange (same); not run
    tldr_{ppo,rloo,dpo,best_of_n}      Pythia-410m on TL;DR (Noukhovitch et al. 2025); not run
    gsm8k_{ppo,rloo,dpo}               Rho-1B on GSM8K (same); not run
    chat_dpo                           Llama-3.1-8B (same); not run
    small_imdb_{ppo,kl,elastic,elastic_often,ema,init,elastic_opt}    sentiment, 2 cores: ppo ends at a score of .985 and a KL
                                       of 126 nats; area under the trade-off up to there .68 ppo, .70 kl, .74 elastic, .71 ema,
                                       .60 init, .75 elastic_opt, .67 elastic_often
    small_imdb_{rloo,dpo,best_of_n,reinforce}    the same task; no score
    small_proxy_{ppo,rloo,dpo,best_of_n}    the same against a reward model learned from pairs, 128 completions a step, 2 cores:
                                       win rates .997, .995, 1.000, 1.000 at KLs of 22, 25, 46, 186 nats
    small_arithmetic_{ppo,rloo,dpo}    equations, 2 cores: exact match .507, .530, .506, drawn
    small_{qa,tldr,gsm8k}_ARM          the published settings with 1 M parameters: they run, they teach little
    tiny, tiny_dpo, tiny_lora          tests
"""

from ml_collections import ConfigDict

from rlhf_jax.tasks.config import language, task_of, tiny

PAPER = (
    *(f"imdb_{arm}" for arm in ("ppo", "nlpo", "elastic", "ema", "init")),
    *(f"qa_{arm}" for arm in ("ppo", "elastic")),
    *(f"tldr_{arm}" for arm in ("ppo", "rloo", "dpo", "best_of_n")),
    *(f"gsm8k_{arm}" for arm in ("ppo", "rloo", "dpo")),
    "chat_dpo",
)
ARMS = ("ppo", "kl", "elastic", "elastic_often", "ema", "init", "elastic_opt", "rloo", "dpo", "best_of_n", "reinforce")
SMALL = (
    *(f"small_imdb_{arm}" for arm in ARMS),
    *(f"small_proxy_{arm}" for arm in ("ppo", "rloo", "dpo", "best_of_n")),
    *(f"small_arithmetic_{arm}" for arm in ("ppo", "rloo", "dpo")),
    *(f"small_{name}" for name in PAPER if name.startswith(("qa", "tldr", "gsm8k"))),
)
TINY = ("tiny", "tiny_dpo", "tiny_lora")
VARIANTS = (*PAPER, *SMALL, *TINY)

MODELS = {"imdb": "gpt2", "qa": "llama-7b", "tldr": "pythia-410m", "gsm8k": "rho-1b", "chat": "llama-3.1-8b"}


def get_config(variant: str = "small_imdb_elastic") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    published = {"imdb": imdb, "qa": qa, "tldr": tldr, "gsm8k": gsm8k, "chat": chat}
    own = {"imdb": small_imdb, "proxy": small_proxy, "arithmetic": small_arithmetic}
    if variant in PAPER:
        task, _, arm = variant.partition("_")
        c = start({"chat": "qa"}.get(task, task), MODELS[task])
        published[task](c, arm)
    elif variant in SMALL:
        _, task, arm = variant.split("_", 2)
        data = {"proxy": "imdb"}.get(task, task)
        c = start(data, "small")
        if task in own:
            task_of(c, data)
            own[task](c, arm)
        else:
            published[task](c, arm)
            shrink(c, task)
    else:
        c = start("imdb", "tiny")
        tiny_arm(c, variant.removeprefix("tiny").removeprefix("_"))
    return c.lock()


def start(task: str, model: str) -> ConfigDict:
    """Every key, with the conventions of async_rlhf."""
    c = language("rlhf_jax.rl", task, model, batch=64, steps=150)
    c.lag = 0  # steps between the weights that generate and those that learn
    # value: a reward model that the critic starts from, '' = the policy; reward, gold: what judges, a run or a folder.
    c.sources.update({"value": "", "reward": "", "gold": ""})
    c.reward = {"kind": "model"}  # judges.py
    c.gold = {"kind": ""}  # a second opinion, for evaluation only
    c.rl = {
        "algorithm": "ppo",
        "epochs": 1,
        "minibatches": 1,
        "shuffle": True,
        "forward_rows": 0,  # rows at once in passes without gradient; 0 = all
        "kl": 0.05,  # weight of the KL penalty in the reward, at first
        "control": {"kind": "fixed", "target": 1.0, "horizon": 10000},
        "kl_reference": "init",  # or 'ema', as the released IMDB code has it
        "ratio_mode": "recompute",
        "tis_cap": 2.0,
        "eos_mode": "none",
        "eos_value": -1.0,
        "score_place": "after",
        "gamma": 1.0,
        "lam": 0.95,
        "whiten": "rollout",  # advantages
        "whiten_rewards": False,
        "clip": 0.2,
        "clip_value": 0.2,
        "value": "separate",
        "value_weight": 0.1,
        "stop_kl": 0.0,  # 0 = never
        "beta": 0.1,  # of DPO and IPO
        "drop_ties": False,
        "limit_p": 0.0,  # NLPO: actions are the tokens in this nucleus of an older policy, which is renewed
        "limit_every": 50,  # after so many iterations; 0.0: all tokens
    }
    # A reset follows the iterations with the indices every, 2 every, ... (from 0; at_zero: 0 too).
    c.elastic = {"mode": "none", "decay": 0.0, "every": 0, "at_zero": False, "cadence": "iteration"}
    c.elastic.update({"reset_opt": False, "reset_critic": False})
    c.log.every = 1
    c.checkpoint.every = 25
    return c


def imdb(c: ConfigDict, arm: str) -> None:
    """RL4LMs fork, branch paper. There 1,280 token transitions an iteration and minibatches of 64; here whole responses."""
    c.update({"batch": 28, "steps": 50})  # 28 x 48 = 1,344 tokens
    c.reward.kind = "classifier"  # --config.sources.reward: distilbert-imdb
    c.sample.update({"prompt": 64, "response": 48, "top_k": 50, "stop": False})
    c.rl.update({"epochs": 5, "minibatches": 14, "ratio_mode": "behaviour", "gamma": 0.99, "whiten": "minibatch"})
    c.rl.update({"score_place": "last", "value_weight": 0.5, "clip_value": 0.0, "kl": 0.1})
    c.rl.control.update({"kind": "rl4lms", "target": 0.5})
    c.optim.update({"lr": 1e-6, "weight_decay": 1e-6, "clip": 0.5})
    c.eval.update({"every": 1, "prompts": 512})
    c.eval.corpus.texts = 5000
    if arm == "nlpo":
        c.rl.update({"kl": 1.0, "limit_p": 0.9})
        c.rl.control.target = 1.0
    elif arm != "ppo":
        c.rl.kl = 0.001
        c.rl.control.target = 1.0
        c.rl.kl_reference = "ema"  # separate_ema_model: false in the released configs
        c.elastic.update({"mode": arm, "decay": 0.995, "every": 17, "at_zero": True})
    c.eval.temperature = 1.0


def qa(c: ConfigDict, arm: str) -> None:
    """StackLLaMA in trl 0.4."""
    c.update({"batch": 64 if arm == "elastic" else 32, "steps": 600})  # 16 (8) x 4 GPUs
    c.accumulate = 8
    c.lora.update({"rank": 16, "alpha": 32.0})
    c.sample.update({"prompt": 512, "response": 128, "shortest": 32, "stop": False})
    c.rl.update(
        {"epochs": 4, "ratio_mode": "behaviour", "value": "head", "stop_kl": 0.15, "kl": 0.02 if arm == "elastic" else 0.2}
    )
    c.rl.control.update({"kind": "trl", "target": 6.0})
    c.optim.lr = 1.41e-5
    c.eval.update({"every": 20, "prompts": 512})
    c.eval.corpus.update({"texts": 4000, "style": "stackllama"})
    if arm == "elastic":
        c.elastic.update({"mode": "elastic", "decay": 0.995, "every": 260, "cadence": "epoch"})


def tldr(c: ConfigDict, arm: str) -> None:
    """async_rlhf: 131,072 episodes. PPO's critic starts from the proxy there: give --config.sources.value too."""
    c.update({"batch": 512, "steps": 256})
    c.sample.update({"prompt": 512, "response": 53, "temperature": 0.7})
    c.rl.update({"algorithm": arm, "eos_mode": "replace", "forward_rows": 64})
    c.accumulate = 8
    c.gold.kind = "model"
    c.optim.update({"lr": 3e-6, "schedule": "linear", "steps": 256})
    c.eval.update({"every": 32, "prompts": 512, "temperature": 0.01})
    if arm != "ppo":
        c.sample.each = 2
        c.rl.shuffle = arm == "rloo"
    if arm == "rloo":
        c.batch = 256  # its 512 are completions


def gsm8k(c: ConfigDict, arm: str) -> None:
    """async_rlhf, branch dev: exact match as the reward."""
    c.update({"batch": 252, "steps": 512})
    c.reward.kind = "exact"
    c.sample.update({"prompt": 256, "response": 512, "temperature": 0.7, "each": 1 if arm == "ppo" else 4})
    c.rl.update({"algorithm": arm, "forward_rows": 63, "drop_ties": True, "epochs": 2 if arm == "ppo" else 1})
    c.accumulate = 7
    if arm == "rloo":
        c.update({"batch": 63, "steps": 2048})  # its 252 are completions; as many of them in all
    c.optim.update({"lr": 3e-6, "schedule": "linear", "steps": c.steps * c.rl.epochs, "clip": 1.0})
    c.eval.update({"every": c.steps // 16, "prompts": 1319, "temperature": 0.0})


def chat(c: ConfigDict, arm: str) -> None:
    """open-instruct's command for the 8B run: 100k episodes."""
    c.update({"batch": 256, "steps": 390})
    c.sample.update({"prompt": 512, "response": 1024, "temperature": 0.7, "each": 2})
    c.rl.update(
        {"algorithm": arm, "beta": 0.03, "eos_mode": "replace", "eos_value": -10.0, "forward_rows": 32, "shuffle": False}
    )
    c.accumulate = 16
    c.optim.update({"lr": 8e-7, "schedule": "linear", "steps": 390})
    c.eval.update({"every": 39, "prompts": 500})


def small_imdb(c: ConfigDict, arm: str) -> None:
    """Sentiment of continuations, scored by the classifier that is trained here; the lexicon is the other opinion.

    At a rate of 3e-4 PPO reached the top score, and a KL of 80 nats, in 40 iterations: nothing was left to trade.
    """
    c.update({"batch": 64, "steps": 150})
    c.gold.kind = "lexicon"
    c.rl.update({"minibatches": 4, "ratio_mode": "behaviour", "value_weight": 0.5, "kl": 0.0})
    c.optim.update({"lr": 1e-4, "clip": 1.0})
    c.eval.update({"every": 17, "prompts": 512, "rows": 128})  # also right after the resets, which follow iterations 51 and 101
    if arm == "kl":
        c.rl.kl = 0.1
    elif arm.partition("_")[0] in ("elastic", "ema", "init"):  # 4 updates x 50 iterations a cycle: .99^200 = .98^100 = .13
        c.elastic.update({"mode": arm.partition("_")[0], "decay": 0.99, "every": 50, "cadence": "step"})
        c.elastic.reset_opt = arm == "elastic_opt"
        if arm == "elastic_often":
            c.elastic.update({"decay": 0.98, "every": 25})
    elif arm != "ppo":
        c.rl.update({"algorithm": arm, "kl": 0.05})
        c.sample.each = 1 if arm == "reinforce" else 2


def small_proxy(c: ConfigDict, arm: str) -> None:
    """TL;DR of two cores: a proxy of a gold judge, one update a step on 128 completions, KL and beta as there."""
    alone = arm == "ppo"
    c.update({"batch": 128 if alone else 64, "steps": 128})
    c.sample.each = 1 if alone else 2
    c.gold.kind = "lexicon"
    c.rl.update({"algorithm": arm, "ratio_mode": "behaviour"})
    c.optim.update({"lr": 3e-4, "clip": 1.0})
    c.eval.update({"every": 16, "prompts": 512, "rows": 128})


def small_arithmetic(c: ConfigDict, arm: str) -> None:
    """A GSM8K of two cores: 0/1 reward for the right number, 1,024 completions a step. One or two hundred teach nothing."""
    alone = arm == "ppo"
    c.update({"batch": 1024 if alone else 256, "steps": 200})
    c.reward.kind = "exact"
    c.sample.each = 1 if alone else 4
    c.rl.update({"algorithm": arm, "drop_ties": True, "ratio_mode": "behaviour", "minibatches": 4, "kl": 0.0})
    c.optim.update({"lr": 1e-4, "clip": 1.0})
    c.eval.update({"every": 25, "prompts": 512, "rows": 128})


def shrink(c: ConfigDict, task: str) -> None:
    """A published run for two cores."""
    task_of(c, task)
    c.update({"batch": 16, "steps": 60, "accumulate": 1})
    c.rl.forward_rows = 0
    c.gold.kind = ""
    c.lora.rank = min(c.lora.rank, 8)
    c.sample.shortest = min(c.sample.shortest, 16)
    c.elastic.every = min(c.elastic.every, 20)
    c.optim.update({"lr": 1e-4, "clip": 1.0, "schedule": "constant", "steps": 0})
    c.eval.update({"every": 20, "prompts": 64, "rows": 32})
    c.eval.corpus.update({"texts": min(c.eval.corpus.texts, 50), "window": 128, "stride": 64})


def tiny_arm(c: ConfigDict, arm: str) -> None:
    tiny(c)
    c.batch = 16
    c.reward.kind = "length"
    c.optim.lr = 1e-4
    c.rl.update({"minibatches": 2, "epochs": 2, "ratio_mode": "behaviour"})
    if arm == "dpo":
        c.rl.algorithm = "dpo"
        c.sample.each = 3
    elif arm == "lora":  # with a head for a critic, in chunks, and NLPO
        c.lora.rank = 4
        c.sample.shortest = 6
        c.rl.update({"limit_p": 0.9, "limit_every": 2})
        c.eval.corpus.update({"texts": 3, "window": 16, "stride": 8, "style": "stackllama"})
        c.rl.update({"value": "head", "stop_kl": 0.5, "eos_mode": "replace", "forward_rows": 8})
        c.rl.control.kind = "trl"
    else:
        c.elastic.update({"mode": "elastic", "decay": 0.9, "every": 2, "cadence": "step"})
        c.elastic.update({"reset_opt": True, "reset_critic": True})
        c.rl.update({"kl_reference": "ema", "ratio_mode": "tis"})
