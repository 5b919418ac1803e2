"""The line that a training prints per epoch."""

from train_head.reports.progress import EpochLines, epoch_line

RECORD = {
    "epoch": 2,
    "train_loss": 0.12345,
    "valid_mean_pearson": 0.4321,
    "valid_pearson": {"Joy": 0.4321},
    "undefined": [],
    "best": True,
    "seconds": 3.0,
    "frames_per_second": 1234567,
}


def test_a_line_says_how_the_epoch_went_and_what_is_left():
    line = epoch_line(RECORD, 30, 3725)
    assert line == "epoch   2/30  loss 0.1235  pearson 0.432*  3.0 s  1,234,567 frames/s  1:02:05 left"


def test_an_undefined_correlation_is_named():
    record = RECORD | {"valid_mean_pearson": None, "valid_pearson": {"Joy": None}, "undefined": ["Joy"], "best": False}
    assert epoch_line(record, 30, 0).endswith("pearson undef   3.0 s  1,234,567 frames/s  0:00 left  (undefined: Joy)")


def test_a_run_without_validation_has_no_pearson():
    record = RECORD | {"valid_mean_pearson": None, "valid_pearson": {}}
    assert "pearson" not in epoch_line(record, 30, 0)


def test_the_time_left_counts_the_epochs_of_this_call():
    said: list[str] = []
    lines = EpochLines(5, said.append)
    for epoch, seconds in ((3, 10.0), (4, 30.0), (5, 2.0)):
        lines(RECORD | {"epoch": epoch, "seconds": seconds})
    assert [line.split("  ")[-1] for line in said] == ["0:20 left", "0:20 left", "0:00 left"]


class Clock:
    """Seconds that only a test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_long_epoch_says_each_minute_how_far_it_is():
    said: list[str] = []
    clock = Clock()
    lines = EpochLines(3, said.append, clock)
    for done in range(1, 26):
        clock.seconds += 10.0
        lines.on_step(1, "training", done, 25)
    for done in (1, 2):
        clock.seconds += 45.0
        lines.on_step(1, "validating", done, 2)
    lines(RECORD | {"epoch": 1, "seconds": 340.0})
    clock.seconds += 50.0
    lines.on_step(2, "training", 1, 25)
    assert said[:-1] == [
        "epoch   1/3  training: 6 of 25 steps, 6.0 steps/min, 3:10 left of it",
        "epoch   1/3  training: 12 of 25 steps, 6.0 steps/min, 2:10 left of it",
        "epoch   1/3  training: 18 of 25 steps, 6.0 steps/min, 1:10 left of it",
        "epoch   1/3  training: 24 of 25 steps, 6.0 steps/min, 0:10 left of it",
        "epoch   1/3  validating: 2 of 2 steps, 1.3 steps/min, 0:00 left of it",
    ]
    assert said[-1].startswith("epoch   1/3  loss")
