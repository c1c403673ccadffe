"""Keeps engines fed: asks prompts ahead of their step, has the responses scored, and hands over the groups of a step.

Prompts, responses and groups pass through one thread; replies and rewards come from others and wait in a queue. Imports
neither Ray nor vLLM.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

from data_pipeline.types import SampleRef
from rl.config import RLConfig
from rl.groups import select_groups
from rl.modes.line import Line, Place
from rl.prompts.stream import PromptStream
from rl.rollout.calls import Request
from rl.rollout.carried import load_carried, save_carried
from rl.rollout.collect import Collected, measure_collected
from rl.types import Group, Prompt, Responses

log = logging.getLogger(__name__)

CHUNK = 64
"""Prompts that are read before the engines get them: reading takes about a millisecond each."""
END_TIMEOUT = 10.0
"""Seconds that a feeder which is closed waits for what it is doing."""
R = TypeVar("R")


class Score(Protocol):
    """Scorer.score, or Solutions.score"""

    def __call__(self, prompt: Prompt, responses: Responses, *, max_tokens: int) -> Future[Group]: ...


class Feeder:
    """The prompts of an asynchronous run, from being asked until a step takes their groups.

    A group without a signal makes room for another prompt at once, under dynamic sampling. Close it after use.
    """

    def __init__(
        self,
        config: RLConfig,
        prompts: PromptStream,
        submit: Callable[[Sequence[Request]], Sequence[Future[Responses]]],
        score: Score,
        *,
        threaded: bool = True,
    ) -> None:
        """Asks nothing before begin().

        Args:
            submit: RolloutManager.submit.
            score: begins to score the responses to a prompt, and does not wait.
            threaded: false leaves turn() to the caller.
        """
        self._config, self._prompts, self._submit, self._score = config, prompts, submit, score
        self._run_folder = Path(config.run)
        self._line = Line(config, steps_done=0)
        self._again: list[Place] = []  # asked before the run was resumed, and not answered
        self._events: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._open: set[Future[Any]] = set()  # what others wait for
        self._next: tuple[int, Future[Collected]] | None = None  # the step that waits for its groups
        self._failure: BaseException | None = None
        self._is_closed = False
        self._thread = Thread(target=self._run, name="feed", daemon=True) if threaded else None
        if self._thread:
            self._thread.start()

    def begin(self, steps_done: int) -> None:
        """Asks what there is room for, now that the engines have the weights of so many steps."""
        self._events.put(partial(self._begin, steps_done))

    def take(self, step: int) -> Future[Collected]:
        """Returns the groups of a step to come, which must have begun; one step at a time.

        The future raises what went wrong: too many bad prompts, and what engines and scorer raise.
        """
        future = self._promise()
        self._events.put(partial(self._want, step, future))
        return future

    def save(self, step: int) -> dict[str, Any]:
        """Writes the groups that wait; returns the state that load() gets back after `step` steps."""
        return self._call(partial(self._save, step))

    def load(self, step: int, state: Mapping[str, Any]) -> None:
        """Continues after `step` steps, before begin(); prompts without a group are asked again first, as they were.

        From the beginning where `state` has no prompts.
        """
        self._call(partial(self._load, step, state))

    def count_groups(self) -> dict[str, int]:
        """Returns how many groups wait to be trained on, and how many prompts are asked in all; in any thread."""
        return {"ready": self._line.num_ready, "asked": self._line.num_waiting}

    def turn(self) -> bool:
        """Does what the next event asks for, and waits for one; returns False once it is closed."""
        event = self._events.get()
        if event is None or self._is_closed:
            return False
        try:
            if self._failure:
                raise self._failure
            event()
        except BaseException as error:  # those who wait shall know, whatever it is
            self._failure = error
            while self._open:  # others may add to it meanwhile
                self._open.pop().set_exception(error)
        return True

    def run_turns(self) -> None:
        """Does what all events ask for, without a thread."""
        while not self._events.empty():
            self.turn()

    def close(self) -> None:
        """Asks nothing any more. What engines and scorer still do is left to them."""
        self._is_closed = True
        self._events.put(None)
        if self._thread:
            self._thread.join(END_TIMEOUT)

    def _run(self) -> None:
        while self.turn():
            pass

    def _promise(self) -> Future[Any]:
        future: Future[Any] = Future()
        self._open.add(future)
        return future

    def _keep(self, future: Future[R], result: R) -> None:
        self._open.discard(future)
        future.set_result(result)

    def _call(self, act: Callable[[], R]) -> R:
        """Returns what `act` does in the thread."""
        future = self._promise()
        self._events.put(lambda: self._keep(future, act()))
        if self._thread is None:
            self.run_turns()
        return future.result()

    def _begin(self, steps_done: int) -> None:
        self._line.end_step(steps_done)
        again, self._again = self._again, []
        self._send(again)
        self._ask()

    def _ask(self) -> None:
        while room := self._line.room:
            self._send([self._line.add(prompt) for prompt in self._prompts.choose(min(room, CHUNK))])

    def _send(self, places: Sequence[Place]) -> None:
        """Gives prompts to the engines."""
        requests = [
            Request(prompt=place.prompt, sampling=self._config.sampling.at(place.step), seed=place.number)
            for place in places
        ]
        for place, future in zip(places, self._submit(requests), strict=True):
            future.add_done_callback(partial(self._tell, self._take_responses, place))

    def _tell(self, act: Callable[[Place, Future[Any]], None], place: Place, future: Future[Any]) -> None:
        """Has the thread act on a reply or a group; is called in any thread."""
        self._events.put(partial(act, place, future))

    def _take_responses(self, place: Place, reply: Future[Responses]) -> None:
        responses = reply.result()
        if responses.fault:
            self._prompts.refuse(place.prompt, responses)
            self._line.remove(place)
            self._ask()
            self._serve()
            return
        scored = self._score(
            place.prompt, responses, max_tokens=self._config.sampling.at(place.step).max_tokens
        )
        scored.add_done_callback(partial(self._tell, self._take_group, place))

    def _take_group(self, place: Place, scored: Future[Group]) -> None:
        self._finish(place, scored.result())
        self._ask()
        self._serve()

    def _finish(self, place: Place, group: Group) -> None:
        self._line.finish(place, group, bool(select_groups(self._config.algorithm, [group])))

    def _want(self, step: int, future: Future[Collected]) -> None:
        self._next = (step, future)
        self._serve()

    def _serve(self) -> None:
        """Hands over the groups of the step that waits, if all are scored."""
        if self._next is None or (taken := self._line.take()) is None:
            return
        (step, future), self._next = self._next, None
        self._prompts.learn(step, taken.asked)
        algorithm = self._config.algorithm
        chosen = [taken.counted[i] for i in select_groups(algorithm, taken.counted)]
        if algorithm.dynamic_sampling.enabled and len(chosen) < self._config.prompts_per_step:
            log.warning(
                f"step {step}: {len(chosen)} of {self._config.prompts_per_step} groups have a signal, of "
                f"{len(taken.asked)} prompts (algorithm.dynamic_sampling.max_tries * prompts_per_step without one)"
            )
        metrics = measure_collected(self._config, step, asked=taken.asked, chosen=chosen, found=len(chosen))
        metrics |= {**self._prompts.skipped, "groups_ahead": float(self._line.num_ready)}
        self._keep(future, Collected(asked=taken.asked, chosen=chosen, metrics=metrics))
        self._ask()  # where there was no room for lack of signals

    def _save(self, step: int) -> dict[str, Any]:
        places = list(self._line)
        save_carried(self._run_folder, step, [place.group for place in places if place.group])
        rows = [
            [place.number, place.step, asdict(place.prompt.ref), place.group is not None] for place in places
        ]
        return {"prompts": self._prompts.state_dict(), "line": {"asked": self._line.asked, "places": rows}}

    def _load(self, step: int, state: Mapping[str, Any]) -> None:
        self._line.end_step(step)
        if "line" not in state:
            return
        self._prompts.load_state_dict(state["prompts"])
        rows = state["line"]["places"]
        self._line.asked = state["line"]["asked"]
        saved = sum(has_group for *_, has_group in rows)
        groups = iter(load_carried(self._run_folder, step, saved, then="their prompts are asked again"))
        for number, for_step, ref, has_group in rows:
            group = next(groups, None) if has_group else None
            prompt = group.prompt if group else self._prompts.choose_again(SampleRef(**ref))
            if prompt is None:  # it cannot be read any more
                continue
            place = self._line.add_again(prompt, number, for_step)
            if group:
                self._finish(place, group)
            else:
                self._again.append(place)
