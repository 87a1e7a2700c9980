"""Which parameters a gradient reached: from the sampled steps of a run, or from one backward pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.evidence.shapes import Shapes
from vlmdoctor.evidence.steps import Steps, Track

MISSING_SAMPLES = 3  # steps: fewer could all be unlucky batches
ZERO_SAMPLES = 4  # zero-initialised gates and LoRA's A start with zero gradients, and warm-up may start at 0
PATH = ("vision", "projector", "language", "head")

# Kept in checkpoints and by design outside a language-modelling loss: poolers and heads of towers, mask
# tokens of masked-image pretraining. A choice has no gradient either: experts that the router did not take,
# indexers that pick the keys of sparse attention, towers that turn an image into discrete words.
_UNUSED = re.compile(
    r"(^|\.)(pooler|probe|mask_token|logit_scale|logit_bias|cls|classifier|experts?|router|indexer"
    r"|vq_?(model|vae|gan)|quantizer?|codebook)(\.|$)"
)
_ROUTER = re.compile(r"(^|\.)(router|gate|gating)(\.|$)")
_EXPERT = re.compile(r"(^|\.)experts?(\.|$)")
# Towers for what batches of text and images don't hold.
_OTHER_SENSES = re.compile(r"(^|\.)\w*(audio|video|speech)\w*\.")
# What a layer leaves in a cache.
_CACHED = re.compile(r"(^|\.)(k|v|kv|key|value)(_(a|b))?(_proj)?(_with_mqa)?\.|(^|\.)[kv]_norm\.")
_FOR_IMAGES = re.compile(r"vision|visual|image|img")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The trainable parameters that were measured often enough to say so.

    Attributes:
        tracks: What was measured of each parameter, by name, in the model's order.
        reached: Those that got a gradient other than zero.
        missing: Those that never did.
        undecided: Those whose few gradients were exactly zero so far, as behind a gate that starts at zero.
        with_images: In how many of the measured passes there were images; None where that is not known.
        enough_images: How many of them are enough to blame a missing gradient on the model.
    """

    tracks: Mapping[str, Track]
    reached: tuple[Parameter, ...]
    missing: tuple[Parameter, ...]
    undecided: tuple[Parameter, ...]
    with_images: int | None
    enough_images: int

    @property
    def seen(self) -> tuple[Parameter, ...]:
        """All of them."""
        return (*self.reached, *self.missing, *self.undecided)

    @property
    def whole_roles(self) -> list[str]:
        """The roles in which nothing was reached, in the order in which the data passes them."""
        alive = {p.role for p in (*self.reached, *self.undecided)}
        missing = {p.role for p in self.missing if not _UNUSED.search(p.name)}
        return [role for role in PATH if role in missing - alive]

    @cached_property
    def lost_routers(self) -> tuple[Parameter, ...]:
        """The routers, where no gradient is made for any of them although their experts learn."""
        routers = [p for p in self.seen if _ROUTER.search(p.name) and not _EXPERT.search(p.name)]
        if any(self.tracks[p.name].with_gradient for p in routers):
            return ()
        learning = {p.layer for p in self.reached if _EXPERT.search(p.name)}
        return tuple(p for p in routers if p.layer in learning)

    def comes_through(self, role: str) -> bool:
        """Whether the gradient passes an image part up to its first tensor: what is missing lies beside."""
        part = {p.name: p for p in self.seen if p.role == role}
        first = next((part[name] for name in self.tracks if name in part), None)
        return role in ("vision", "projector") and first in self.reached

    @property
    def perhaps_without_images(self) -> bool:
        """Whether batches of text alone would explain what is missing."""
        unseen = set(self.whole_roles) <= {"vision", "projector"}
        unseen = unseen and not any(p.role in ("vision", "projector") for p in self.reached)
        return unseen and (self.with_images or 0) < self.enough_images

    def unused_by_design(self, p: Parameter) -> bool:
        """Whether it is usual that `p`, which is missing, gets no gradient while others of its role do."""
        if self._of_a_sense_that_rests(p):
            return True
        if _UNUSED.search(p.name):
            return p not in self.lost_routers
        if "lora_A" in p.name or "lora_embedding_A" in p.name:  # zero while its B has not moved yet
            twin = self.tracks.get(p.name.replace("_A", "_B"))
            if twin is not None and twin.with_gradient > twin.zero_gradient and twin.moved == 0:
                return True
        if p.role not in ("vision", "projector") and not _FOR_IMAGES.search(p.name[len(p.layer) :]):
            return self._behind_a_cache(p)
        if not p.layer:  # norms and heads behind the last layer whose features are used
            return p.role == "vision" and bool(re.search(r"norm|ln_|head|neck", p.name))
        # Of the last layers nobody may ask for everything: features are taken in front of them, or only
        # those of some tokens, whose path passes through some of their modules (the queries of a Q-Former;
        # the text, where experts of a language model are for images alone).
        stack, tail = p.layer.rpartition(".")[0], p.name[len(p.layer) :]
        alike = [
            q for q in self.seen if q.layer.rpartition(".")[0] == stack and q.name[len(q.layer) :] == tail
        ]
        used = {q.depth for q in alike if q.depth is not None and q not in self.missing}
        behind = p.depth is not None and bool(used) and p.depth > max(used)
        return behind and len(alike) - len(used) <= max(1, len(alike) // 2)

    def _of_a_sense_that_rests(self, p: Parameter) -> bool:
        """Whether `p` is in a tower for sounds or videos that nothing came through."""
        found = _OTHER_SENSES.search(p.name)
        return found is not None and not any(q.name.startswith(p.name[: found.end()]) for q in self.reached)

    def _behind_a_cache(self, p: Parameter) -> bool:
        """Whether `p` lies behind the last keys and values of a stack that others read its cache of (π0)."""
        parent = p.name.rpartition(".")[0].rpartition(".")[0]
        stack = p.layer.rpartition(".")[0]
        within = [
            q
            for q in self.seen
            if q.depth is not None
            and (q.layer.rpartition(".")[0] == stack if p.layer else q.layer.rsplit(".", 2)[0] == parent)
        ]
        last = max((q.depth for q in within if q.depth is not None), default=None)
        if last is None or (p.layer and p.depth != last):
            return False
        used = [q.name for q in within if q.depth == last and q in self.reached]
        cached = [name for name in used if _CACHED.search(name)]
        return bool(cached) and all(_CACHED.search(name) or "norm" in name for name in used)


def reach_in_steps(parameters: Parameters, steps: Steps) -> Reach:
    """What the sampled steps of a run say."""
    tracks = {track.name: track for track in steps.tracks}
    images = [s.images for s in steps.sampled if s.images is not None]
    with_images = sum(1 for count in images if count) if images else None
    return _reach(parameters, tracks, MISSING_SAMPLES, ZERO_SAMPLES, with_images, MISSING_SAMPLES)


def reach_in_backward(parameters: Parameters, backward: Backward) -> Reach:
    """What one backward pass says: where it made no gradient there is no path; zeros are not judged."""
    tracks = {
        g.name: Track(name=g.name, samples=1, with_gradient=int(g.present), zero_gradient=int(bool(g.zero)))
        for g in backward.gradients
    }
    with_images = None if backward.images is None else int(backward.images > 0)
    return _reach(parameters, tracks, 1, 2, with_images, 1)


def reach_in_shapes(parameters: Parameters, shapes: Shapes) -> Reach:
    """What a step without weights says: whether there is a path, and nothing about its numbers."""
    missing = set(shapes.without_gradient)
    tracks = {
        p.name: Track(name=p.name, samples=1, with_gradient=int(p.name not in missing), zero_gradient=0)
        for p in parameters.parameters
        if p.requires_grad
    }
    with_images = None if shapes.images is None else int(shapes.images > 0)
    return _reach(parameters, tracks, 1, 2, with_images, 1)


def _reach(
    parameters: Parameters,
    tracks: Mapping[str, Track],
    for_missing: int,
    for_zero: int,
    with_images: int | None,
    enough_images: int,
) -> Reach:
    reached, missing, undecided = [], [], []
    for p in parameters.parameters:
        track = tracks.get(p.name)
        if track is None or not p.requires_grad:
            continue
        if track.with_gradient > track.zero_gradient:
            reached.append(p)
        elif track.samples >= (for_zero if track.with_gradient else for_missing):
            missing.append(p)
        elif track.with_gradient:
            undecided.append(p)
    return Reach(
        tracks=tracks,
        reached=tuple(reached),
        missing=tuple(missing),
        undecided=tuple(undecided),
        with_images=with_images,
        enough_images=enough_images,
    )
