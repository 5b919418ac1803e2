"""The line that a training prints per epoch."""

from train_head.progress import EpochLines, epoch_line

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
