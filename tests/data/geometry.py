"""Jitter settings that several test files share."""

from defaults import defaults

from geoseg_gan.data.settings import (
    AffineStep,
    ElasticStep,
    FlipStep,
    JitterSettings,
    QuarterTurnStep,
)

OFF = defaults(JitterSettings)
FLIPS = defaults(JitterSettings, flip=defaults(FlipStep, 0.5))
TURNS = defaults(
    JitterSettings, quarter_turn=defaults(QuarterTurnStep, 0.75), flip=defaults(FlipStep, 0.5)
)
ALL_STEPS = defaults(
    JitterSettings,
    defaults(ElasticStep, 0.5),
    defaults(AffineStep, 0.5),
    TURNS.quarter_turn,
    TURNS.flip,
)
STRONG = defaults(
    JitterSettings,
    defaults(ElasticStep, 1.0, amplitude=10.0, wavelength=24.0),
    defaults(AffineStep, 1.0, degrees=90.0, scale=[0.4, 2.5], translate=0.5),
    TURNS.quarter_turn,
    TURNS.flip,
)
