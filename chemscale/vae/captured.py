"""Training steps as CUDA graphs: what the host would launch kernel by kernel is recorded once and replayed.

A step of the default recipe is several hundred small kernels; launching them one by one takes longer than they run.
A recording repeats the same kernels on the same memory, so what changes from step to step lies in tensors that are
overwritten before a replay: the batch, the numbers of the schedules, and the seed of the generator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from chemscale.vae.data import TrainingBatch

logger = logging.getLogger(__name__)
#: Runs before a recording: libraries set themselves up in the first, which must not be recorded.
WARM_UP = 3
#: Forward and backward pass on a batch with the numbers of the schedules; gives the loss terms.
Pass = Callable[[TrainingBatch, Mapping[str, float | Tensor], torch.Generator], dict[str, Tensor]]


class Recorder(Protocol):
    """Records what `run` does on the device, and gives what does it again."""

    def __call__(self, run: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
        """`generator` is the one that `run` draws from; a replay starts from where it is then."""
        ...


def record_cuda_graph(run: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
    """A :class:`Recorder` on the generator's CUDA device."""
    with torch.cuda.device(generator.device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        before = torch.cuda.current_stream()
        try:
            # other threads may go on using the device: one of them reads the next stars ahead
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                run()
        except BaseException:
            torch.cuda.set_stream(before)  # a recording that fails leaves its own as the current one
            raise
    return graph.replay


class CapturedSteps:
    """Steps of a training, recorded anew whenever the objective changes.

    Parameters
    ----------
    parameters : list of torch.nn.Parameter
        Those that get gradients. Gradients stay where the recording has them until the next recording.
    device : torch.device
        Where everything lies.
    record : Recorder
        Default: a CUDA graph.

    Attributes
    ----------
    refused : str
        Why the device would not record a step; from then on steps are launched kernel by kernel. '' as a rule.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], device: torch.device, record: Recorder = record_cuda_graph
    ):
        self.parameters, self.device, self._record = parameters, device, record
        self.generator = torch.Generator(device)
        self.refused = ""
        self._key: Hashable = None
        self._replay: Callable[[], None] | None = None
        self._batch: TrainingBatch | None = None
        self._dials: dict[str, Tensor] = {}
        self._names: tuple[str, ...] = ()
        self._terms: Tensor | None = None
        self._gradients: list[Tensor | None] = []

    def __call__(
        self, key: Hashable, batch: TrainingBatch, dials: Mapping[str, float], seed: int, run: Pass
    ) -> dict[str, Tensor]:
        """Loss terms of a step; gradients lie in the parameters.

        Parameters
        ----------
        key : hashable
            Everything `run` depends on beside its arguments: another one makes another recording.
        batch : TrainingBatch
            On the device.
        dials : mapping of str to float
            Numbers of the schedules; `run` gets them as tensors of no dimension.
        seed : int
            Of the step's random numbers.
        run : callable
            Forward and backward pass, without anything that has the host wait for the device.
        """
        if not self.refused and (self._replay is None or (key, len(batch)) != self._key):
            self._capture(batch, dials, run)
            self._key = (key, len(batch))
        if self.refused:
            self._forget_gradients()
            return run(batch, dials, self.generator.manual_seed(seed))
        assert self._batch is not None and self._replay is not None and self._terms is not None
        for kept, new in zip(self._batch.tensors(), batch.tensors(), strict=True):
            kept.copy_(new)
        for name, value in dials.items():
            self._dials[name].fill_(value)
        self.generator.manual_seed(seed)
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._replay()
        return dict(zip(self._names, self._terms.clone().unbind(), strict=True))

    def _capture(self, batch: TrainingBatch, dials: Mapping[str, float], run: Pass) -> None:
        self._replay, self._terms, self._gradients = None, None, []  # their memory is free for the next recording
        self._batch = batch.copy()
        self._dials = {name: torch.full((), value, device=self.device) for name, value in dials.items()}

        def recorded() -> None:
            assert self._batch is not None
            self._forget_gradients()  # else gradients would be added to those of the run before
            terms = run(self._batch, self._dials, self.generator)
            self._names = tuple(terms)
            self._terms = torch.stack([value.detach().float() for value in terms.values()])

        try:
            self._replay = self._record(recorded, self.generator)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as err:
            self.refused = str(err) or type(err).__name__
            self.generator = torch.Generator(self.device)  # the other one may still count as being recorded
            logger.warning("%s does not record training steps, they take several times as long: %s", self.device, err)
        self._gradients = [parameter.grad for parameter in self.parameters]

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
