"""From a video to one face per row: pictures on the clock of the sound, detection, tracking, aligned crops."""
