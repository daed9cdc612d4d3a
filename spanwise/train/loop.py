"""The loop, readable top to bottom: sample trees, give credit, update, write down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanwise.display import Display, step_figures
from spanwise.learn.critic import still_rising
from spanwise.learn.nonfinite import NonfiniteError
from spanwise.rollout.failures import RunStopped
from spanwise.run.folder import RunError, RunFolder
from spanwise.runtime.event_loop import run_async
from spanwise.runtime.signals import Stopped, StopSignals
from spanwise.runtime.waits import waiting
from spanwise.samplers.base import EngineError
from spanwise.train.checkpoint import save_weights
from spanwise.train.config import TrainConfig
from spanwise.train.evaluate import measure
from spanwise.train.metrics import own_metrics, tree_metrics
from spanwise.train.nonfinite_batch import save_for_study
from spanwise.train.resume import is_saved, restore, save_state
from spanwise.train.start import start
from spanwise.train.state import Clock, Run
from spanwise.train.summary import summary
from spanwise.train.task_sampling import Sampled, draw_tasks, rollouts, sample_step
from spanwise.train.tree_records import records, token_arrays


def train(
    config: TrainConfig,
    *,
    recipe: str,
    folder: Path,
    display: Display,
    arguments: Sequence[str] = (),
    resume: bool = False,
) -> RunFolder:
    """Train, measure before and after, and leave a run folder.

    Args:
      config: The resolved configuration.
      recipe: Name of the recipe it came from, for the record.
      folder: The run folder, new.
      display: Where progress is shown.
      arguments: What the command line changed in the recipe, so that both together give
        the configuration again.
      resume: Go on with the run in ``folder``, of the same configuration, from its newest
        checkpoint. The run ends as if it had never been stopped.

    Returns:
      The finished run's log.

    Raises:
      ModelError: if the model cannot be used.
      ValueError: if the tokenizer cannot write what the environment needs.
      RunStopped: if too much fails, by ``config.failures``, or the engine takes no weights.
      RunError: if the folder cannot be written, or holds no run that can be gone on with;
        or if loss or gradient were not finite too often in a row.
      Stopped: by Ctrl-C or SIGTERM, once all is written that the run goes on from.
    """
    run = start(config, recipe=recipe, folder=folder, arguments=arguments, resume=resume)
    try:
        with StopSignals(run.ranks) as signals, config.watchdog.watching(run.tell):
            try:
                if resume:
                    restore(run, display)
                run_training(run, display, signals)
            except asyncio.CancelledError:
                signals.check()
                raise
    except Stopped:
        if run.state.settled and run.state.before is not None and not is_saved(run):
            save_state(run)
        raise
    except NonfiniteError as error:
        raise nonfinite_error(error, run) from error
    except (RunStopped, EngineError) as error:  # too much failed, or no weights were taken
        raise RunStopped(
            f"{error}. Once that is mended, go on: spanwise train --resume {folder}"
        ) from error.__cause__ or error
    finally:
        run.close()
    return run.log


def run_training(run: Run, display: Display, signals: StopSignals) -> None:
    """Take a run from where it is to its end; a signal stops it between two steps."""
    config, state = run.config, run.state
    if state.before is None:
        with display.waiting("measuring the model before training"):
            state.before = measure(run.context, config.rollout, config.evaluation, run.ranks)
    if not state.critic_fitted:
        pretrain_critic(run, display, signals)
    with display.bar("training", config.steps, done=state.step) as after_step:
        for step in range(state.step + 1, config.steps + 1):
            signals.check()
            metrics = train_step(run, step, signals)
            state.step = step
            state.held_out = metrics.get("eval/success", metrics.get("eval/score"))
            run.write(metrics)
            state.settled = True
            if is_due(step, config.checkpoints.every, config.steps):
                save_state(run)
                run.journal.clear(but=step + 1 if config.max_off_policy_steps else None)
            after_step(step, step_figures(metrics))
    signals.check()
    with display.waiting("measuring the model after training"):
        after = measure(run.context, config.rollout, config.evaluation, run.ranks)
    with waiting(f"the saving of the finished model, step {state.step}"):
        save_weights(run.log.checkpoint_path("final"), run.learner, run.tokenizer)
    if run.ranks.is_main:
        run.log.write_summary(summary(run, after))


def nonfinite_error(error: NonfiniteError, run: Run) -> RunError:
    """The error of a run that is not finite; its last minibatch is written down."""
    step, where = run.state.step + 1, ""
    if run.ranks.is_main:
        where = f"; the last minibatch is in {save_for_study(error.rows, run.log.folder, step)}"
    return RunError(
        f"{error} in step {step}{where}. A lower learning rate or a smaller clip range may help"
    )


def train_step(run: Run, step: int, signals: StopSignals) -> dict[str, Any]:
    """Sample trees, give credit, update; the metrics of the step.

    A batch without a reward trains nothing, and ``no_signal`` counts it.
    """
    config, learner, clock = run.config, run.learner, Clock()
    sampled = run.prefetcher.take() or sampled_trees(run, step)
    signals.check()  # before anything that a stop cut short is trained on
    if config.max_off_policy_steps and step < config.steps:
        run.prefetcher.begin(lambda: sampled_trees(run, step + 1))
    else:
        run.context.sampler.pause()
    clock.lap("rollout")

    with waiting(f"the scoring, step {step}"):
        batch = learner.score(sampled.trees)
    metrics = {"step": step, **tree_metrics(sampled.all_trees, batch)}
    metrics |= own_metrics(config.metrics, sampled.all_trees, batch)
    if config.max_off_policy_steps:
        metrics["staleness"] = min(step - 1, config.max_off_policy_steps)
    if config.dynamic_sampling_rounds:
        metrics["dropped_prompts"] = len(sampled.all_trees) - len(sampled.trees)
    clock.lap("scoring")
    if batch is None:
        metrics["no_signal"] = 1.0
    else:
        run.state.settled = False
        with waiting(f"the update, step {step}"):
            metrics |= learner.update(batch, step=step)
            run.prefetcher.settle()
            run.update_sampler()
        clock.lap("update")
        if is_due(step, config.keep_trees_every, config.steps):
            values = learner.advantage.node_values(batch)
            arrays = token_arrays(learner, batch)
            if run.ranks.is_main:
                kept = records(sampled.trees, sampled.tasks, batch, arrays, values)
                run.log.write_trees(step, kept)
            clock.lap("record")
    run.prefetcher.settle()

    if is_due(step, config.evaluation.every, config.steps + 1):
        held_out = measure(run.context, config.rollout, config.evaluation, run.ranks)
        scores = {k: value for k, value in held_out.items() if isinstance(value, float)}
        metrics |= {f"eval/{name}": value for name, value in scores.items()}
        clock.lap("evaluation")
    run.count(metrics, clock.total(), epochs=config.update.epochs)
    return {**metrics, "total_sampled_tokens": run.state.sampled_tokens, **clock.seconds()}


def sampled_trees(run: Run, step: int) -> Sampled:
    """The trees of a step from the weights that the sampler has now."""
    return run_async(sample_step(run.training_context(), run.config, run.pool, step, run.ranks))


def pretrain_critic(run: Run, display: Display, signals: StopSignals) -> None:
    """Fit the critic to the frozen policy until its explained variance stops rising.

    Each batch is sampled afresh and predicted before it is trained on. Their metrics are
    those of step 0.
    """
    critic, history, every = run.learner.critic, run.state.critic_history, run.config.checkpoints
    batches = 0 if critic is None else critic.pretraining_steps
    while len(history) < batches and still_rising(history):
        signals.check()
        if not history:
            display.console.print("fitting the critic, the policy is frozen")
        metrics = critic_step(run, len(history) + 1, signals)
        history.append(metrics["explained_variance"])
        run.write(metrics)
        run.state.settled = True
        display.console.print(
            f"critic batch {len(history)}, at most {batches}: explains "
            f"{history[-1]:.2f} of the variance",
        )
        if is_due(len(history), every.every, batches):
            save_state(run)
            run.journal.clear()
    run.state.critic_fitted = True


def critic_step(run: Run, number: int, signals: StopSignals) -> dict[str, Any]:
    """Sample batch ``number`` and fit the critic alone to it; the metrics of the batch."""
    config, learner, clock = run.config, run.learner, Clock()
    step = 1 - number  # draws of their own: training steps count from 1
    tasks = draw_tasks(run.pool, config.prompts_per_step, config.seed, step)
    trees = run_async(rollouts(run.training_context(), config, tasks, step, run.ranks))
    signals.check()
    run.context.sampler.pause()
    clock.lap("rollout")
    with waiting(f"the scoring, step {step}"):
        batch = learner.score(trees)
    metrics = {"step": 0, "critic_batch": number, **tree_metrics(trees, batch)}
    metrics |= own_metrics(config.metrics, trees, batch)
    if batch is not None:
        run.state.settled = False
        with waiting(f"the fit of the critic, step {step}"):
            metrics |= learner.fit_critic(batch, step=step)
    clock.lap("update")
    run.count(metrics, clock.total(), epochs=0)
    metrics.setdefault("explained_variance", 0.0)
    return {**metrics, **clock.seconds()}


def is_due(step: int, every: int, last: int) -> bool:
    """True at every ``every``-th step (0: never) and at the last."""
    return every > 0 and (step % every == 0 or step == last)
