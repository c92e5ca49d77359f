"""What `dev.py bench` runs: benchmark to arguments, in their order."""

SHORT = {
    "quality": ("--steps", "20", "--pictures", "64", "--methods", "no guidance", "CFG", "CFG++", "annealing"),
    "ring": ("--samples", "512", "--figure", "bench-output/ring.png"),
    "cost": (),
}
# A night on two cores, and most of it is quality's.
FULL = {
    "quality": (),
    "training_grid": (),
    "ring": (),
    "cost": ("--full",),
    "few_steps": (),
    "strength": (),
    "training_quality": (),
    "training_cost": (),
    "profile_size": (),
}
