"""How both networks are optimised."""

from dataclasses import dataclass, field

from geoseg_gan.errors import UserError, check_choice

SCHEDULES = ("constant", "linear")


@dataclass
class OptimizerSettings:
    """How both networks are optimised.

    Attributes:
        betas: Adam's two decay rates.
        d_lr_ratio: The discriminator's learning rate over the generator's (Heusel et al. 2017);
            spectral norm slows the discriminator, which 4 makes up for.
        schedule: "linear" falls to 0 from `decay_from` on, "constant" does not.
        decay_from: Share of the training after which the rate falls.
        clip: Largest gradient norm of either network; 0 for none.
        ema: How much of the generator's moving average is kept from batch to batch; 0 for none.
            Early averages keep less, (1 + batches) / (10 + batches) at most.
    """

    betas: list[float] = field(default_factory=lambda: [0.5, 0.999])
    d_lr_ratio: float = 4.0
    schedule: str = "linear"
    decay_from: float = 0.5
    clip: float = 0.0
    ema: float = 0.999

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={self.betas}: use two numbers in [0, 1).")
        if not 0 <= self.decay_from < 1:
            raise UserError(f"optimizer.decay_from={self.decay_from}: use a share in [0, 1).")
        if not 0 <= self.ema < 1:
            raise UserError(f"optimizer.ema={self.ema}: use a number in [0, 1); 0 for none.")
        if self.d_lr_ratio <= 0 or self.clip < 0:
            raise UserError(
                f"optimizer: d_lr_ratio={self.d_lr_ratio} must be positive and clip={self.clip} "
                "not negative."
            )
