"""An amount of work: floating-point operations, and the seconds that a machine needs for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Floating-point operations and seconds. Works add up; a work times a number is as much work so many times."""

    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.seconds + other.seconds)

    def __radd__(self, other: int) -> "Work":  # for `sum`, which starts at 0
        return self

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.seconds * times)

    __rmul__ = __mul__
