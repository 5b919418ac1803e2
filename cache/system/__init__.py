"""What the machine gives: cores, memory, disks, locks, child processes."""
