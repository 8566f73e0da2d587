"""Settings of masked-diffusion decoding. An invalid combination cannot be built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twinrun.diffusion.commit import Commit, Quota
from twinrun.diffusion.forward import SkipPolicy
from twinrun.diffusion.suffix import SuffixWindow
from twinrun.errors import ConfigError, near_names

CACHES = {
    "none": "a full forward in every step (the reference)",
    "prefix": "the block and all behind it are computed, what is before it is reused",
    "dual": "the block alone is computed, what is before and behind it is reused",
}
REMASKING = {
    "low_confidence": "the least sure proposals are masked again",
    "random": "chance says which proposals are masked again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionSettings:
    """How a canvas is filled in.

    Raises:
        ConfigError: a value outside its range, an unknown name, or settings that contradict each other.
    """

    block_length: int = field(
        default=32, metadata={"help": "tokens of a block; blocks are filled left to right"}
    )
    commit: Commit = field(
        default=Quota(), metadata={"help": "quota[:steps a block], threshold[:p], or factor[:f]"}
    )
    cache: str = field(default="none", metadata={"help": "none, prefix, or dual"})
    refresh_every: int | None = field(
        default=None,
        metadata={"help": "a full forward every k steps of a block; unset: at its first step only"},
    )
    remasking: str = field(default="low_confidence", metadata={"help": "low_confidence, or random"})
    skip: SkipPolicy | None = field(default=None, metadata={"help": "tokens that skip deeper layers"})
    delay: bool = field(
        default=False,
        metadata={"help": "reuse keys and values of the block's tokens from the step after their commit on"},
    )
    suffix_window: SuffixWindow | None = field(
        default=None, metadata={"help": "leave out most of the masks far behind the block"}
    )

    def __post_init__(self) -> None:
        """Check ranges, names and combinations."""
        if self.block_length < 1:
            raise ConfigError(
                f"block_length={self.block_length}: a block has at least 1 token; LLaDA uses 32"
            )
        _known("cache", self.cache, CACHES)
        _known("remasking", self.remasking, REMASKING)
        if not isinstance(self.commit, Commit):
            raise ConfigError(
                f"commit={self.commit!r} has no choose(); give tr.Quota(), tr.Threshold(0.9) or tr.Factor(1.0)"
            )
        if self.remasking == "random" and not isinstance(self.commit, Quota):
            raise ConfigError(
                f"remasking='random' ranks by chance, so {self.commit} has no confidence to look at; "
                "use commit=tr.Quota(steps)"
            )
        self._check_cache()

    def _check_cache(self) -> None:
        if self.refresh_every is not None:
            if self.refresh_every < 1:
                raise ConfigError(
                    f"refresh_every={self.refresh_every}: steps are counted from 1; 1 is a full forward every step"
                )
            if self.cache == "none":
                raise ConfigError(
                    f"refresh_every={self.refresh_every} without a cache: there is nothing to refresh; "
                    "add cache='dual' or 'prefix'"
                )
        if self.skip is not None:
            if not isinstance(self.skip, SkipPolicy):
                raise ConfigError(
                    f"skip={self.skip!r} has no start(parts); give a skip policy such as tr.TokenSkip()"
                )
            if self.cache != "dual":
                raise ConfigError(
                    f"skip with cache={self.cache!r}: skipped tokens live on the block's cache; add cache='dual'"
                )

        if self.delay and (self.cache != "dual" or self.skip is not None):
            other = f"cache={self.cache!r}" if self.cache != "dual" else f"skip={self.skip!r}"
            raise ConfigError(
                f"delay with {other}: it chooses which tokens of a dual cache are computed; use cache='dual' "
                "and no skip"
            )
        if self.suffix_window is not None and not isinstance(self.suffix_window, SuffixWindow):
            raise ConfigError(
                f"suffix_window={self.suffix_window!r} is no SuffixWindow; give tr.SuffixWindow(window=...)"
            )

    @property
    def name(self) -> str:
        """Short name for records: "dual", "dual+refresh_every=2", "dual+skip"."""
        parts = [self.cache]
        if self.refresh_every is not None:
            parts.append(f"refresh_every={self.refresh_every}")
        if self.skip is not None:
            parts.append("skip")
        if self.delay:
            parts.append("delay")
        if self.suffix_window is not None:
            parts.append("suffix_window")
        return "+".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return {
            "block_length": self.block_length,
            "commit": repr(self.commit),
            "cache": self.cache,
            "refresh_every": self.refresh_every,
            "remasking": self.remasking,
            "skip": None if self.skip is None else repr(self.skip),
            "delay": self.delay,
            "suffix_window": None if self.suffix_window is None else repr(self.suffix_window),
        }


def _known(setting: str, value: str, known: dict[str, str]) -> None:
    if value not in known:
        raise ConfigError(
            f"{setting}={value!r} is not one of {', '.join(map(repr, known))}.{near_names(str(value), known)}"
        )
