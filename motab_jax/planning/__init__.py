"""Does a run fit, and how fast can it be: abstract arrays, ahead-of-time compilation, rooflines."""
