"""A run from its configuration: everything that can be refused, and then its parts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanwise.errors import SpanwiseError
from spanwise.learn.learner import Learner
from spanwise.models.sampling_copy import sampling_copy
from spanwise.rollout.journal import StepJournal
from spanwise.run.folder import RunFolder, refuse_foreign
from spanwise.run.lock import locked
from spanwise.runtime.distributed import Ranks
from spanwise.train.checkpoint import check_saving
from spanwise.train.config import TrainConfig, to_json
from spanwise.train.memory_check import check_memory
from spanwise.train.resume import open_for_resume
from spanwise.train.state import Run, RunState
from spanwise.train.task_sampling import draw_tasks


def start(
    config: TrainConfig, *, recipe: str, folder: Path, arguments: Sequence[str], resume: bool
) -> Run:
    """A run with all its parts; what can be refused is refused before the model is read."""
    config.sampler.check()
    ranks = config.processes.join(config.model.device)
    if config.max_off_policy_steps and ranks.size > 1:
        raise SpanwiseError(
            f"max_off_policy_steps=1 is for one process, and there are {ranks.size}"
        )
    folder = Path(ranks.gather(str(folder))[0])  # a name made of the time is the main rank's
    if ranks.is_main and not resume:
        refuse_foreign(folder)
    pool = config.env.tasks("train")  # before the tokenizer, which may have to be downloaded
    draw_tasks(pool, config.prompts_per_step, config.seed, 1)  # refuses too small a pool
    config.evaluation.tasks(config.env)  # refuses a split without questions
    tokenizer = config.model.load_tokenizer()
    config.env.check(tokenizer)
    config.critic.check(config.model, tokenizer)
    check_memory(config, ranks)
    bound = config.bind(tokenizer)
    if ranks.is_main and config.rollout.sampling.leaves_out:
        warnings.warn(
            "with rollout.sampling.top_p or top_k, turns are drawn from fewer tokens than the "
            "policy that is trained may choose; importance.tis_cap makes up for the odds of those "
            "drawn, and nothing for the others (docs/mismatch.md)",
            RuntimeWarning,
            stacklevel=3,
        )
    settings = to_json(config)
    for tracker in config.trackers:
        tracker.check()
    log = open_for_resume(folder, settings) if resume else RunFolder(folder)
    with contextlib.ExitStack() as cleanup:  # if anything below fails
        lock, trackers = None, []
        if ranks.is_main:
            lock = locked(folder)
            cleanup.callback(lock.release)
            if not resume:
                record = {"recipe": recipe, "arguments": list(arguments), "config": settings}
                log = RunFolder.create(folder, record)
                cleanup.callback(log.discard)
        policy = sampled = config.model.load()
        check_saving(policy, tokenizer)
        if config.sampler.reads_policy:
            sampled = sampling_copy(policy, ranks.mesh, apart=config.max_off_policy_steps > 0)
        learner = new_learner(bound, policy, ranks)
        sampler = config.sampler.build(sampled, tokenizer)
        cleanup.callback(sampler.close)
        if ranks.is_main:
            trackers = [make(folder, settings) for make in dict.fromkeys(config.trackers)]
        cleanup.pop_all()
    return Run(
        recipe=recipe,
        config=config,
        log=log,
        lock=lock,
        trackers=trackers,
        tokenizer=tokenizer,
        settings=settings,
        context=config.context(sampler, tokenizer, config.seed),
        journal=StepJournal(folder / "journal"),
        learner=learner,
        sampled=sampled,
        pool=pool,
        state=RunState(),
        ranks=ranks,
    )


def new_learner(config: TrainConfig, policy: Any, ranks: Ranks) -> Learner:
    """The learner of a run, from its policy and the parts of its configuration after ``bind``."""
    return Learner(
        policy,
        advantage=config.advantage,
        objective=config.objective,
        update=config.update,
        schedule=config.schedule,
        num_steps=config.steps,
        critic=config.critic.build(policy, config.model, ranks),
        kl=config.kl,
        overlong=config.overlong,
        max_response_tokens=config.rollout.max_response_tokens,
        importance=config.importance,
        temperature=config.rollout.sampling.temperature,
        seed=config.seed,
        ranks=ranks,
    )
