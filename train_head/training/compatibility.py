"""Which settings go with which targets."""

from train_head.data.names import UNNAMED
from train_head.errors import refuse
from train_head.heads import check_states
from train_head.heads.fusions import FUSIONS
from train_head.losses import compares_clips
from train_head.targets import Targets
from train_head.training.augment_settings import AugmentSettings
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings


def check_clock(settings: TrainSettings, predictor: Predictor) -> None:
    """Refuse augmentation that moves rows where a fusion joins streams by the times of their rows.

    Raises:
        TrainSettingsError: says which, and what to take instead.
    """
    refuse(
        (
            predictor.needs_clock and AugmentSettings(**settings.augment).frame_dropout > 0,
            f"frame_dropout moves rows away from their times, at which the fusion {settings.fusion!r} joins the "
            "streams; set it to 0, or take the fusion concat, late or crossattention",
        )
    )


def check_targets(settings: TrainSettings, targets: Targets) -> None:
    """Refuse settings that do not go with a value per clip, or with one per frame.

    Raises:
        TrainSettingsError: a batch is one clip, and the loss compares clips; or for labels per frame, augmentation
            moves rows, or a head has no state per row; or settings for labels per frame are given for labels per clip,
            or a clock for a fusion that has none.
    """
    if targets.by_frame:
        check_states(settings.stream(name).head for name in settings.streams or [UNNAMED])
    compared, augment = compares_clips(settings.loss), AugmentSettings(**settings.augment)
    refuse(
        (
            settings.batch_size == 1 and bool(compared) and not targets.by_frame,
            f"the loss {', '.join(compared)} compares the clips of a batch, and is constant for one; give batch_size 2 "
            "or more",
        ),
        (
            not targets.by_frame and (settings.missing != TrainSettings.missing or settings.smooth != "none"),
            "missing and smooth are for labels per frame; with a label per clip, rows in which nothing was found are "
            "left out, and there is nothing to smooth",
        ),
        (
            not targets.by_frame and bool(settings.clock) and not FUSIONS[settings.fusion].by_times,
            f"the fusion {settings.fusion!r} does not join streams by the times of their rows, and has no clock; leave "
            "clock out, or take the fusion transformer",
        ),
        (
            targets.by_frame and bool(augment.mixup or augment.frame_dropout),
            "mixup and frame_dropout move rows away from their labels, and there are labels per frame; set both to 0, "
            "and use noise or time_masks",
        ),
    )
