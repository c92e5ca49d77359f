"""What `dev.py bench` runs: benchmark to arguments, in their order."""

SHORT = {
    "quality": ("--steps", "20", "--pictures", "64", "--methods", "no guidance", "CFG", "CFG++", "annealing"),
    "cost": (),
}
# A night on two cores, and most of it is quality's.
FULL = {"quality": (), "cost": ("--full",), "strength": ()}
